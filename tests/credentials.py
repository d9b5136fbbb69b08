# SPDX-License-Identifier: GPL-2.0-only
"""Folders of credentials, as QEMU has them."""
import os
import subprocess


def x509(folder, name="10.77.0", authority=None):
    """A folder as QEMU has it, with the certificates of both sides; authority: a folder that has another's."""
    os.makedirs(folder, mode=0o700)
    for who in ("ca", "server", "client"):
        with open(f"{folder}/{who}.info", "w", encoding="ascii") as f:
            f.write(f"cn = criu-vm {who}\n")
            f.write("ca\ncert_signing_key\n" if who == "ca" else "signing_key\nencryption_key\n" + f"tls_www_{who}\n")
            if who == "server":
                f.write("".join(f"ip_address = {name}.{n}\n" for n in (1, 2)))
    sign = authority or folder

    def certtool(*line):
        subprocess.run(["certtool", "--bits=2048", *line], check=True, capture_output=True)
    if not authority:
        certtool("--generate-privkey", f"--outfile={folder}/ca-key.pem")
        certtool("--generate-self-signed", f"--load-privkey={folder}/ca-key.pem", f"--template={folder}/ca.info",
                 f"--outfile={folder}/ca-cert.pem")
    for who in ("server", "client"):
        certtool("--generate-privkey", f"--outfile={folder}/{who}-key.pem")
        certtool("--generate-certificate", f"--load-privkey={folder}/{who}-key.pem", f"--load-ca-certificate={sign}/ca-cert.pem",
                 f"--load-ca-privkey={sign}/ca-key.pem", f"--template={folder}/{who}.info", f"--outfile={folder}/{who}-cert.pem")
    return folder


def psk(folder, user="migration"):
    os.makedirs(folder, mode=0o700)
    with open(f"{folder}/keys.psk", "w", encoding="ascii") as f:
        os.fchmod(f.fileno(), 0o600)
        f.write(f"{user}:{os.urandom(32).hex()}\n")
    return folder


def creds(folder):
    return ["--tls-creds", folder]
