"""An issuer of bearer tokens for tests: RSA keys made with openssl, their key set (JWKS), and signed JWTs."""
import base64
import json
import pathlib
import subprocess
import time


def in_base64url(octets):
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()


class Issuer:
    """`file` is its key set, which grows with each new key; the latest one signs."""

    def __init__(self, folder, name="https://issuer.example.org/"):
        self.folder, self.name = pathlib.Path(folder), name
        self.folder.mkdir(parents=True)
        self.file = self.folder / "jwks.json"
        self.keys = []
        self.add_key("first")

    def add_key(self, kid):
        private = self.folder / f"{kid}.key"
        openssl("genrsa", "-out", private, "2048")
        openssl("rsa", "-in", private, "-pubout", "-out", self.public(kid))
        modulus = bytes.fromhex(openssl("rsa", "-in", private, "-noout", "-modulus").decode().strip().split("=")[1])
        self.keys.append({"kty": "RSA", "use": "sig", "alg": "RS256", "kid": kid, "e": "AQAB",
                          "n": in_base64url(modulus)})
        self.kid = kid
        part = self.file.with_suffix(".new")  # as a careful admin does it
        part.write_text(json.dumps({"keys": self.keys}))
        part.rename(self.file)

    def public(self, kid):
        """The PEM file with a public key."""
        return self.folder / f"{kid}.pub"

    def token(self, user, **claims):
        now = int(time.time())
        told = {"iss": self.name, "aud": "imap", "sub": user, "scope": "openid mail", "iat": now, "exp": now + 3600,
                **claims}
        parts = [in_base64url(json.dumps(part).encode())
                 for part in ({"alg": "RS256", "typ": "JWT", "kid": self.kid}, told)]
        signed = ".".join(parts)
        signature = openssl("dgst", "-sha256", "-sign", self.folder / f"{self.kid}.key", data=signed.encode())
        return f"{signed}.{in_base64url(signature)}"


def openssl(*words, data=None):
    return subprocess.run(["openssl", *map(str, words)], input=data, capture_output=True, check=True).stdout
