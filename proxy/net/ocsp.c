/* Owns the OCSP responses: each belongs to the SSL_CTX that serves it, and goes with it. */
#include "proxy/net/ocsp.h"

#include "proxy/base/mem.h"
#include "proxy/base/readers.h"

#include <errno.h>
#include <openssl/err.h>
#include <openssl/ocsp.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

enum { RESPONSE_MAX = 65535, CLOCK_SKEW_S = 300 };

struct staple {
    struct readers readers;
    struct ocsp_dates dates;
    size_t len;
    unsigned char response[]; /* DER */
};

/* --- what a response says --- */

static bool digest_is(const ASN1_OCTET_STRING *expected, const ASN1_OBJECT *algorithm,
                      const X509_NAME *name)
{
    unsigned char digest[EVP_MAX_MD_SIZE];
    const EVP_MD *method = EVP_get_digestbyobj(algorithm);
    unsigned len = 0;

    return method != NULL && X509_NAME_digest(name, method, digest, &len) == 1 &&
           (int)len == ASN1_STRING_length(expected) &&
           memcmp(digest, ASN1_STRING_get0_data(expected), len) == 0;
}

/* The one about this certificate, by its serial number and the name of who has issued it. */
static OCSP_SINGLERESP *find(OCSP_BASICRESP *basic, X509 *certificate)
{
    for (int i = 0; i < OCSP_resp_count(basic); i++) {
        OCSP_SINGLERESP *single = OCSP_resp_get0(basic, i);
        ASN1_OCTET_STRING *name = NULL;
        ASN1_OBJECT *algorithm = NULL;
        ASN1_INTEGER *serial = NULL;

        if (OCSP_id_get0_info(&name, &algorithm, NULL, &serial,
                              (OCSP_CERTID *)OCSP_SINGLERESP_get0_id(single)) == 1 &&
            ASN1_INTEGER_cmp(serial, X509_get0_serialNumber(certificate)) == 0 &&
            digest_is(name, algorithm, X509_get_issuer_name(certificate)))
            return single;
    }
    return NULL;
}

static int64_t unix_time(const ASN1_GENERALIZEDTIME *time)
{
    struct tm parts;

    if (time == NULL)
        return INT64_MAX;
    return ASN1_TIME_to_tm(time, &parts) == 1 ? timegm(&parts) : 0;
}

static bool read_single(OCSP_SINGLERESP *single, struct ocsp_dates *out, struct err *err)
{
    ASN1_GENERALIZEDTIME *from = NULL, *until = NULL;
    int status = OCSP_single_get0_status(single, NULL, NULL, &from, &until);

    if (status != V_OCSP_CERTSTATUS_GOOD)
        return err_set(err, ERR_CONFIG, "it calls the certificate %s",
                       OCSP_cert_status_str(status));
    *out = (struct ocsp_dates){unix_time(from), unix_time(until)};
    if (OCSP_check_validity(from, until, CLOCK_SKEW_S, -1) == 1)
        return true;
    return err_set(err, ERR_CONFIG, "it has expired, or does not count yet");
}

static bool read_response(OCSP_RESPONSE *response, X509 *certificate, struct ocsp_dates *out,
                          struct err *err)
{
    OCSP_BASICRESP *basic = NULL;
    bool good = false;

    if (response == NULL)
        return err_set(err, ERR_CONFIG, "this is no OCSP response");
    if (OCSP_response_status(response) == OCSP_RESPONSE_STATUS_SUCCESSFUL)
        basic = OCSP_response_get1_basic(response);
    OCSP_SINGLERESP *single = basic == NULL ? NULL : find(basic, certificate);

    if (basic == NULL)
        err_set(err, ERR_CONFIG, "it tells nothing, but \"%s\"",
                OCSP_response_status_str(OCSP_response_status(response)));
    else if (single == NULL)
        err_set(err, ERR_CONFIG, "it is about another certificate");
    else
        good = read_single(single, out, err);
    OCSP_BASICRESP_free(basic);
    return good;
}

/* --- serving it --- */

static void free_staple(void *context, void *pointer, CRYPTO_EX_DATA *data, int index, long number,
                        void *argument)
{
    struct staple *staple = pointer;

    (void)context, (void)data, (void)index, (void)number, (void)argument;
    if (staple != NULL)
        readers_look(&staple->readers);
    mem_free(staple);
}

static int staple_index;

static void make_index(void)
{
    staple_index = SSL_CTX_get_ex_new_index(0, NULL, NULL, NULL, free_staple);
}

static int context_index(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;

    pthread_once(&once, make_index);
    return staple_index;
}

static int on_request(SSL *client, void *argument)
{
    struct staple *staple = argument;
    unsigned char *copy = NULL;

    if (time(NULL) < staple->dates.next_update)
        copy = OPENSSL_memdup(staple->response, staple->len);
    if (copy != NULL)
        SSL_set_tlsext_status_ocsp_resp(client, copy, (long)staple->len); /* which takes it over */
    readers_mark(&staple->readers);
    return copy == NULL ? SSL_TLSEXT_ERR_NOACK : SSL_TLSEXT_ERR_OK;
}

static bool serve(SSL_CTX *context, struct staple *staple)
{
    if (context_index() < 0 || SSL_CTX_set_ex_data(context, context_index(), staple) != 1)
        return false;
    SSL_CTX_set_tlsext_status_cb(context, on_request);
    SSL_CTX_set_tlsext_status_arg(context, staple);
    return true;
}

/* In new memory; NULL with *err set. */
static struct staple *read_file(const char *file, struct err *err)
{
    struct staple *staple = mem_new(sizeof *staple + RESPONSE_MAX + 1);
    FILE *in = staple == NULL ? NULL : fopen(file, "re");

    if (in == NULL) {
        err_set(err, staple == NULL ? ERR_INTERNAL : ERR_CONFIG, "%s", strerrordesc_np(errno));
        mem_free(staple);
        return NULL;
    }
    staple->len = fread(staple->response, 1, RESPONSE_MAX + 1, in);
    fclose(in);
    return staple;
}

bool ocsp_staple(SSL_CTX *context, const char *file, struct err *err)
{
    struct staple *staple = read_file(file, err);
    const unsigned char *at = staple == NULL ? NULL : staple->response;
    bool good = false;

    if (staple == NULL)
        return false;
    OCSP_RESPONSE *response =
        staple->len > RESPONSE_MAX ? NULL : d2i_OCSP_RESPONSE(NULL, &at, (long)staple->len);

    if (read_response(response, SSL_CTX_get0_certificate(context), &staple->dates, err))
        good = serve(context, staple) || err_set(err, ERR_INTERNAL, "no memory for it");
    OCSP_RESPONSE_free(response);
    ERR_clear_error();
    if (!good)
        mem_free(staple);
    return good;
}

struct ocsp_dates ocsp_dates(const SSL_CTX *context)
{
    struct staple *staple =
        context_index() < 0 ? NULL : SSL_CTX_get_ex_data(context, context_index());
    struct ocsp_dates dates = {0};

    if (staple != NULL) {
        dates = staple->dates;
        readers_mark(&staple->readers);
    }
    return dates;
}
