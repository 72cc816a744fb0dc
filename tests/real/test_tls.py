"""TLS with clients: certificates by SNI, tickets that any worker takes, ALPN, versions, IPv6."""
import socket
import ssl

import pytest

import servers

CONF = """
process {{ workers = 4 }}
certificate first {{ chain = "{first[0]}" key = "{first[1]}" }}
certificate second {{ chain = "{second[0]}" key = "{second[1]}" }}
listener imaps {{ address = {{"127.0.0.1:{port}", "[::1]:{port}"}} tls = implicit }}
passwd {{ file = "passwd" }}
route {{ file = "routes" }}
shard only {{ address = {{"127.0.0.1:1"}} tls = none }}
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    first = servers.make_certificate(folder, name="first", hosts=("mail.example.org",))
    second = servers.make_certificate(folder, name="second", hosts=("imap.example.net", "*.example.com"))
    (folder / "imapmux").mkdir()
    (folder / "imapmux/passwd").write_text("")
    (folder / "imapmux/routes").write_text("* only\n")
    port = servers.free_port()
    with servers.Imapmux(folder / "imapmux", configuration=CONF.format(first=first, second=second, port=port),
                         ports=[port]):
        yield port


def connect(port, name, session=None, alpn=None, version=None, host="127.0.0.1", context=None):
    context = context or ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if alpn:
        context.set_alpn_protocols(alpn)
    if version:
        context.minimum_version = context.maximum_version = version
    return context.wrap_socket(socket.create_connection((host, port), timeout=10), server_hostname=name, session=session)


def names(tls):
    """The DNS names in the certificate of the server, as openssl prints them."""
    pem = ssl.DER_cert_to_PEM_cert(tls.getpeercert(binary_form=True))
    return servers.subprocess.run(["openssl", "x509", "-noout", "-ext", "subjectAltName"], input=pem.encode(),
                                  capture_output=True, check=True).stdout


@pytest.mark.parametrize("asked,served", [
    ("mail.example.org", b"mail.example.org"), ("imap.example.net", b"imap.example.net"),
    ("IMAP.example.NET", b"imap.example.net"), ("any.example.com", b"imap.example.net"),
    ("unknown.example", b"mail.example.org"), (None, b"mail.example.org")])
def test_certificate_by_name(site, asked, served):
    with connect(site, asked) as tls:
        assert served in names(tls)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("name", ["mail.example.org", "imap.example.net"])
def test_tickets_resume_on_every_worker(site, version, name):
    """The kernel spreads connections over four workers; each of twenty resumes."""
    context = ssl.create_default_context()
    with connect(site, name, version=version, context=context) as tls:
        assert tls.recv(4096).startswith(b"* OK ")  # TLS 1.3 tickets have come by then
        session = tls.session
    for _ in range(20):
        with connect(site, name, session=session, version=version, context=context) as tls:
            assert tls.recv(4096).startswith(b"* OK ")
            assert tls.session_reused


def test_alpn(site):
    with connect(site, "mail.example.org", alpn=["imap"]) as tls:
        assert tls.selected_alpn_protocol() == "imap"
    with connect(site, "mail.example.org") as tls:
        assert tls.selected_alpn_protocol() is None
    with pytest.raises(ssl.SSLError, match="(?i)no.application.protocol"):
        connect(site, "mail.example.org", alpn=["h2", "http/1.1"])


def test_ipv6(site):
    with connect(site, "mail.example.org", host="::1") as tls:
        assert tls.recv(4096).startswith(b"* OK [CAPABILITY IMAP4rev1 ")
