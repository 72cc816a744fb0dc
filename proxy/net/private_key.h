/* Reads private keys so that nothing of the file's text stays in memory. */
#ifndef IMAPMUX_NET_PRIVATE_KEY_H
#define IMAPMUX_NET_PRIVATE_KEY_H

#include <openssl/evp.h>

/*
 * Before anything else is done with OpenSSL: lets private_key_read wipe the copies that OpenSSL
 * makes on its way to a key, and frees as they are. Without it they stay.
 */
void private_key_prepare(void);

/*
 * The first private key of a PEM file, which has no passphrase; NULL with the reason in OpenSSL's
 * queue of errors.
 */
EVP_PKEY *private_key_read(const char *path);

#endif
