# SPDX-License-Identifier: GPL-2.0-only
"""Migrations in secret: by X.509 and by PSK; what is not in secret, or not with whom it should be, is refused."""
import subprocess

from credentials import creds, psk, x509
from misuse_rig import cases, check, test, wait_for

LONG = {"tls-psk"}
SMALL = ["--ram", "16M"]


@cases(x509=x509, psk=psk)
def tls(rig, make):
    """Every channel."""
    vm = rig.memory(48)
    folder = make(f"{rig.tmp}/tls")
    rig.b.serve(secure=creds(folder))
    vm.move(*SMALL, "--channels", "2", secure=creds(folder))


def refused_by_tls(rig, vm, secure, *says):
    result = rig.a.fails(*vm.migrate_line(rig.b, secure=secure), says=says)
    vm.runs_on()
    rig.b.nothing_left()
    return result


@test
def tls_wrong(rig):
    """Of another authority, of another host's name, none at all; and the other way round: errors on both ends, and then it works."""
    vm = rig.memory(32)
    good, other, elsewhere = x509(f"{rig.tmp}/tls"), x509(f"{rig.tmp}/other"), f"{rig.tmp}/elsewhere"
    x509(elsewhere, "10.99.0", good)
    subprocess.run(["cp", f"{good}/ca-cert.pem", elsewhere], check=True)
    rig.b.serve(secure=creds(good))
    for secure in (creds(other), ["--insecure"], creds(psk(f"{rig.tmp}/psk"))):
        refused_by_tls(rig, vm, secure)
    vm.move(*SMALL, secure=creds(good))
    rig.a.serve(secure=creds(elsewhere))
    rig.b.fails(*vm.migrate_line(rig.a, secure=creds(good)))
    vm.runs_on()
    rig.a.stop_server()
    rig.a.serve()
    rig.b.fails(*vm.migrate_line(rig.a, secure=creds(good)))
    vm.runs_on()
    rig.a.nothing_left()
    vm.move()


@test
def secure_or_told(rig):
    """Beyond loopback, nobody speaks in the clear who was not told to."""
    vm = rig.memory(32)
    rig.b.fails("lazy-pages", "--address", rig.b.address, "--port", "0", says=["--insecure", "--tls-creds"], status=2)
    rig.b.serve()
    result = rig.a.criu_vm(*vm.migrate_line(rig.b, secure=()))
    check(result.status in (1, 2) and "--insecure" in result.err, f"{result}")
    vm.runs_on()
    wait_for("nothing there", 5, lambda: not rig.b.residue())
