"""
A certificate authority for tests, made with openssl: certificates for clients with any names, dates and uses, and its
revocation list.
"""
import datetime
import pathlib
import subprocess

CONF = """
[ca]
default_ca = own
[own]
dir = {folder}
database = {folder}/index
serial = {folder}/serial
crlnumber = {folder}/crlnumber
new_certs_dir = {folder}
certificate = {folder}/ca.pem
private_key = {folder}/ca.key
default_md = sha256
default_days = 30
default_crl_days = 30
unique_subject = no
copy_extensions = copy
policy = any
[any]
organizationName = optional
commonName = optional
userId = optional
"""
CURVE = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]


class Authority:
    """`file` is its own certificate."""

    def __init__(self, folder, name):
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True)
        self.file, self.conf = self.folder / "ca.pem", self.folder / "ca.conf"
        self.conf.write_text(CONF.format(folder=self.folder))
        for file, text in (("index", ""), ("serial", "1000\n"), ("crlnumber", "01\n")):
            (self.folder / file).write_text(text)
        openssl("req", "-x509", *CURVE, "-days", "30", "-subj", f"/CN={name}", "-keyout", self.folder / "ca.key",
                "-out", self.file)

    def issue(self, name, subject, more=(), starts=-1, ends=30):
        """A file with a certificate and its key; `more` are extensions, the dates days from now."""
        request, file = self.folder / f"{name}.csr", self.folder / f"{name}.pem"
        extensions = [word for extension in more for word in ("-addext", extension)]
        openssl("req", "-new", *CURVE, "-subj", subject, *extensions, "-keyout", file, "-out", request)
        certificate = openssl("ca", "-batch", "-notext", "-config", self.conf, "-in", request,
                              "-startdate", date(starts), "-enddate", date(ends))
        with open(file, "a") as both:
            both.write(certificate[certificate.index("-----BEGIN"):])
        return file

    def revoke(self, file):
        openssl("ca", "-config", self.conf, "-revoke", file)

    def crl(self):
        """A file with the list of what has been revoked until now."""
        file = self.folder / "crl.pem"
        openssl("ca", "-config", self.conf, "-gencrl", "-out", file)
        return file


def date(days):
    moment = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=days)
    return moment.strftime("%Y%m%d%H%M%SZ")


def openssl(*words):
    done = subprocess.run(["openssl", *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
