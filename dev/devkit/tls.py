"""A certificate authority of its own and a server certificate for the loopback address."""

import shutil

from .say import DevError, run

EXTENSIONS = "subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth\n"
KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]


def create(folder):
    """Return the authority's certificate (a path) and the server's certificate and key (texts)."""
    if not shutil.which("openssl"):
        raise DevError("creating a certificate needs the program openssl; "
                       "on Debian and Ubuntu: apt-get install openssl")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    (folder / "extensions").write_text(EXTENSIONS)
    failure = "openssl could not create the certificate"
    run(["openssl", "req", "-x509", *KEY, "-days", "3650", "-subj", "/CN=pgsteward development CA",
         "-keyout", "ca.key", "-out", "ca.crt"], failure, cwd=folder)
    run(["openssl", "req", "-new", *KEY, "-subj", "/CN=localhost",
         "-keyout", "server.key", "-out", "server.csr"], failure, cwd=folder)
    run(["openssl", "x509", "-req", "-in", "server.csr", "-CA", "ca.crt", "-CAkey", "ca.key",
         "-CAcreateserial", "-days", "3650", "-extfile", "extensions", "-out", "server.crt"],
        failure, cwd=folder)
    certificate, key = ((folder / name).read_text() for name in ("server.crt", "server.key"))
    for path in folder.iterdir():
        if path.name != "ca.crt":
            path.unlink()
    return folder / "ca.crt", certificate, key
