# SPDX-License-Identifier: GPL-2.0-only
"""dump --stream and restore --stream: through files and pipes; what is not whole starts no VM."""
import json
import os
import pty
import random
import signal
import subprocess
import time

from misuse_rig import MIB, Vm, cases, catches, check, test, wait_for


def start_dump(rig, vm, stdout, *args):
    return rig.start(rig.line("dump", str(vm.pid), "--stream", *args), stdout=stdout, stderr=subprocess.PIPE, text=True, errors="replace")


def end(process, status, says=""):
    """What it has said on standard error."""
    said = process.communicate(timeout=300)[1]
    check(process.returncode == status and says in said, f"{process.args}: status {process.returncode}, said: {said}")
    return said


def stream_to_file(rig, vm, *args):
    path = f"{rig.tmp}/stream"
    with open(path, "wb") as f:
        end(start_dump(rig, vm, f, *args), 0, "the stream")
    vm.wait_end(5)
    return path


def verify_stream(rig, path):
    """Its status and answer."""
    with open(path, "rb") as f:
        process = rig.start(rig.line("verify", "--stream", "--json"), stdin=f, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        return process.wait(300), json.loads(process.stdout.read())


def restore_from(rig, stdin, *args, name=None):
    line = rig.line("restore", "--stream", "--name", name or rig.name, "--json", *args)
    return rig.start(line, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace")


def restored(rig, old, process, runs=True):
    result = rig.end_criu_vm(process).check(0)
    vm = Vm(old.dir, json.loads(result.out)["qemu_pid"])
    rig.vms.append(vm)
    if runs:
        vm.passes()
    return vm


@cases(raw=((), ()), zstd=(("--compress", "zstd"), ()), small=((), ("--ram", "16M", "--swap", "{tmp}/swap/image")),
       zstd_small=(("--compress", "zstd:3"), ("--ram", "16M", "--swap", "{tmp}/swap/image")))
def stream_through_a_file(rig, dump_args, restore_args):
    """The source has ended, as with a directory."""
    vm = rig.vm()
    path = stream_to_file(rig, vm, *dump_args)
    check(os.path.getsize(path) < 40 * MIB, "it has more than the VM's RAM")
    for _ in range(2):
        with open(path, "rb") as f:
            copy = restored(rig, vm, restore_from(rig, f, *[a.format(tmp=rig.tmp) for a in restore_args]))
        copy.runs_on()
        copy.kill()
        rig.nothing_left()


@cases(raw=(), zstd=("--compress", "zstd"))
def stream_through_a_pipe(rig, *dump_args):
    """To the other process at once; the source stays stopped."""
    vm = rig.vm()
    read, write = os.pipe()
    dump, restore = start_dump(rig, vm, write, "-s", *dump_args), restore_from(rig, read)
    os.close(read)
    os.close(write)
    end(dump, 0, "the stream")
    vm.stays_paused()
    vm.kill()
    restored(rig, vm, restore).runs_on()


@test
def stream_stands_alone(rig):
    """What does not go with it is refused before anything is touched."""
    vm = rig.vm()
    end(start_dump(rig, vm, subprocess.PIPE, "-D", rig.images(), "-R"), 2, "-D")
    end(start_dump(rig, vm, subprocess.PIPE), 2, "-R")  # nobody would know whether it has arrived
    for args, word in ((["--stream", "-D", rig.images()], "-D"), (["--stream", "--lazy-pages"], "--lazy-pages"), ([], "--stream")):
        rig.criu_vm("restore", *args).check(2, word)
    vm.runs_on()


@test
def stream_and_terminals(rig):
    vm = rig.vm()
    ours, theirs = pty.openpty()
    end(start_dump(rig, vm, theirs, "-R"), 2, "terminal")
    end(restore_from(rig, theirs), 2, "terminal")
    os.close(ours)
    os.close(theirs)
    vm.runs_on()


@cases(killed=signal.SIGKILL, interrupted=signal.SIGINT)
def stream_reader_goes(rig, signum):
    """The source runs on as if nothing had happened."""
    vm = rig.vm()
    read, write = os.pipe()
    dump = start_dump(rig, vm, write, "-s")
    os.close(write)
    wait_for("a part of the stream", 20, lambda: os.read(read, 4096))
    restore = restore_from(rig, read)
    restore.send_signal(signum)
    restore.wait(100)
    os.close(read)
    end(dump, 1, "who read it has gone")
    vm.runs_on()


@cases(killed=signal.SIGKILL, interrupted=signal.SIGINT)
def stream_writer_goes(rig, signum):
    """While nobody reads: the source runs on, and what was written starts nothing."""
    vm = rig.vm()
    read, write = os.pipe()
    dump = start_dump(rig, vm, write, "-R")
    os.close(write)
    wait_for("a part of the stream", 20, lambda: os.read(read, 4096))
    restore = restore_from(rig, read)
    restore.send_signal(signal.SIGSTOP)
    os.close(read)
    time.sleep(0.3)
    dump.send_signal(signum)
    dump.wait(100)
    check(dump.returncode in (1, -signum), f"dump: {dump.returncode}")
    restore.send_signal(signal.SIGCONT)
    rig.end_criu_vm(restore).check(1)
    vm.runs_on()


@test
def stream_is_waited_for(rig):
    """A restore whose stream does not come can be interrupted, and leaves nothing."""
    read, write = os.pipe()
    restore = restore_from(rig, read)
    wait_for("a restore that can be interrupted", 10, lambda: catches(restore.pid, signal.SIGTERM))
    time.sleep(0.3)
    check(restore.poll() is None, "it did not wait")
    restore.send_signal(signal.SIGTERM)
    rig.end_criu_vm(restore, 60).check(1, "interrupted")
    os.close(read)
    os.close(write)
    rig.nothing_left()


@cases(raw=(), zstd=("--compress", "zstd"))
def stream_damaged(rig, *dump_args):
    """Flipped bits and truncations: found before QEMU is started."""
    vm = rig.vm(ram=16)
    path = stream_to_file(rig, vm, *dump_args)
    before, size, rng = rig.text_of(f"{vm.dir}/serial.log"), os.path.getsize(path), random.Random(1)
    with open(path, "rb") as f:
        whole = f.read()
    for i in range(rig.opts.places):
        at = rng.randrange(size) if i % 3 else rng.randrange(min(size, 2000))
        bad = whole[:at] + (b"" if i % 5 == 0 else bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1:])
        with open(path, "wb") as f:
            f.write(bad)
        with open(path, "rb") as f:
            result = rig.end_criu_vm(restore_from(rig, f)).check(1, "stream")
        check("QEMU" not in result.err, f"byte {at}: {result}")
        check(verify_stream(rig, path)[0] == 1, f"byte {at}: verify finds nothing")
    check(rig.text_of(f"{vm.dir}/serial.log") == before, "it ran")
    rig.nothing_left()
    with open(path, "wb") as f:
        f.write(whole)
    status, answer = verify_stream(rig, path)
    check(not status and answer["whole"] and answer["restorable"] and answer["pages"] > 256, f"verify: {answer}")
    with open(path, "rb") as f:
        restored(rig, vm, restore_from(rig, f))


@cases(plain=("-R",), background=("-R", "--background"), zstd=("-R", "--background", "--compress", "zstd"))
def stream_of_a_vm_that_runs_on(rig, *args):
    vm = rig.vm()
    path = f"{rig.tmp}/stream"
    with open(path, "wb") as f:
        end(start_dump(rig, vm, f, *args), 0, "runs on")
    vm.runs_on()
    vm.kill()
    with open(path, "rb") as f:
        restored(rig, vm, restore_from(rig, f)).runs_on()


@test
def stream_of_a_paged_vm(rig):
    """From private virtual memory into private virtual memory."""
    old = rig.vm(ram=64)
    rig.dump(old)
    vm = rig.restore(old, *rig.lazy_small())
    path = f"{rig.tmp}/stream"
    with open(path, "wb") as f:
        end(rig.start(rig.line("dump", rig.name, "--stream", "-R"), stdout=f, stderr=subprocess.PIPE, text=True), 0, "runs on")
    vm.runs_on()
    vm.kill()
    rig.nothing_left()
    with open(path, "rb") as f:
        restored(rig, vm, restore_from(rig, f, "--ram", "16M", "--swap", f"{rig.tmp}/swap/image")).runs_on()
