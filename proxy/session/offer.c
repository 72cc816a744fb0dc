/* Owns which mechanisms can work here, and the list of capabilities before login. */
#include "proxy/session/offer.h"

#include "auth/sasl_server.h"
#include "proxy/net/client_certificate.h"

#include <stdio.h>
#include <strings.h>

bool offer_is_private(const struct offer *offer)
{
    return offer->tls != NULL || offer->listener->plaintext_login;
}

static bool is_listed(const struct conf_words *mechanisms, const char *name)
{
    for (size_t i = 0; i < mechanisms->count; i++)
        if (strcasecmp(mechanisms->items[i], name) == 0)
            return true;
    return mechanisms->count == 0;
}

static bool can_work(const struct offer *offer, const char *name)
{
    char user[SASL_NAME_MAX];

    if (strcmp(name, "EXTERNAL") == 0)
        return client_certificate_user(offer->tls, &offer->conf->tls, user, sizeof user);
    if (strcmp(name, "OAUTHBEARER") == 0 || strcmp(name, "XOAUTH2") == 0)
        return offer->conf->oauth.keys[0] != '\0';
    return offer->conf->auth.sources.count > 0;
}

bool offer_has(const struct offer *offer, const char *mechanism)
{
    return offer_is_private(offer) && is_listed(&offer->listener->mechanisms, mechanism) &&
           can_work(offer, mechanism);
}

bool offer_takes_passwords(const struct offer *offer)
{
    return offer_has(offer, "PLAIN") || offer_has(offer, "LOGIN");
}

/* What any store worth the name has, and our own. */
void offer_capabilities(const struct offer *offer, char text_out[OFFER_CAPABILITIES_MAX])
{
    bool starttls = offer->listener->tls == TLS_STARTTLS && offer->tls == NULL;
    char auth[OFFER_CAPABILITIES_MAX / 2] = "";
    const char *name;
    size_t len = 0;

    for (size_t i = 0; (name = sasl_mechanism_at(i)) != NULL; i++)
        if (offer_has(offer, name))
            len += (size_t)snprintf(auth + len, sizeof auth - len, " AUTH=%s", name);
    snprintf(text_out, OFFER_CAPABILITIES_MAX, "IMAP4rev1%s LITERAL- ID ENABLE IDLE%s%s%s",
             len > 0 ? " SASL-IR" : "", starttls ? " STARTTLS" : "",
             offer_takes_passwords(offer) ? "" : " LOGINDISABLED", auth);
}
