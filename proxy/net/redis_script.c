/* Owns how Redis names a script: by the SHA-1 of its text. */
#include "proxy/net/redis_script.h"

#include <openssl/evp.h>
#include <stdio.h>
#include <string.h>

bool redis_script_init(struct redis_script *script, const char *text, struct err *err)
{
    unsigned char sha1[EVP_MAX_MD_SIZE];
    unsigned len = 0;

    script->text = text;
    if (EVP_Digest(text, strlen(text), sha1, &len, EVP_sha1(), NULL) != 1 ||
        2 * len != REDIS_SHA1_TEXT)
        return err_set(err, ERR_INTERNAL, "redis: no SHA-1 of a script");
    for (size_t i = 0; i < len; i++)
        snprintf(script->sha1 + 2 * i, 3, "%02x", sha1[i]);
    return true;
}
