# SPDX-License-Identifier: GPL-2.0-only
"""stat: of VMs in every state, and of what is none; its three faces say the same."""
import json
import os
import re
import shutil
import signal
import subprocess

from misuse_rig import NOBODY, check, test, wait_for

PAGE = f"{os.path.dirname(os.path.dirname(os.path.abspath(__file__)))}/docs/criu-vm.1"
SAMPLE = re.compile(r'(\w+)\{((?:\w+="(?:[^"\\\n]|\\["\\n])*",?)+)\} (\S+)')


def metrics(rig, *args):
    """What --prometheus prints, checked as strictly as its readers do; a dictionary of (metric, labels)."""
    text = rig.criu_vm("stat", *args, "--prometheus").check(0).out
    helped, types, samples, family = set(), {}, {}, None
    for line in text.splitlines():
        if line.startswith("# HELP "):
            family = line.split()[2]
            check(family not in helped and len(line.split()) > 3, f"metric {family} comes twice, or has no help")
            helped.add(family)
        elif line.startswith("# TYPE "):
            check(line.split()[2] == family, f"{line} behind the help of {family}")
            types[family] = line.split()[3]
        else:
            name, labels, value = SAMPLE.fullmatch(line).groups()
            bare = re.sub(r"_(bucket|sum|count)$", "", name) if types[family] == "histogram" else name
            check(bare == family and bare.startswith("criu_vm_"), f"{name} stands among {family}")
            check((types[family] == "counter") == name.endswith("_total"), f"the {types[family]} {name}")
            check((name, labels) not in samples and float(value) >= 0, f"twice, or no count: {line}")
            samples[name, labels] = float(value)
    check(not text or text.endswith("\n"), "the last line has no end")
    if promtool := shutil.which("promtool"):
        p = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False)
        check(p.returncode == 0, f"promtool: {p.stdout}{p.stderr}")
    return samples


def check_histogram(samples, name):
    """Its buckets grow in both directions, and add up. Returns how many it counts."""
    buckets = [(float(re.search(r'le="([^"]*)"', labels)[1]), n) for (metric, labels), n in samples.items() if metric == f"{name}_bucket"]
    check(buckets == sorted(buckets) and len({le for le, _ in buckets}) == len(buckets), f"{buckets}")
    check([n for _, n in buckets] == sorted(n for _, n in buckets), f"not cumulative: {buckets}")
    count = next(n for (metric, _), n in samples.items() if metric == f"{name}_count")
    check(buckets[-1] == (float("inf"), count), f"{buckets[-1]}, count {count}")
    return count


def state_is(rig, state, up, *says):
    """All faces agree on it."""
    answer = rig.stat()
    check(answer["state"] == state, f"expected {state}: {answer}")
    check((state == "served") == ("message" not in answer), f"{answer}")
    check(all(word in answer["message"] for word in says), f"{says}: {answer}")
    samples = metrics(rig)
    check(samples["criu_vm_up", f'vm="{rig.name}"'] == up, f"up: {samples}")
    check(any(name == "criu_vm_info" and f'state="{state}"' in labels for name, labels in samples), f"info: {samples}")
    for args in ([], [rig.name]):
        text = rig.criu_vm("stat", *args).check(0).out
        check(state in text if state != "served" else "running" in text, f"{state}: {text}")
        check(answer.get("message", "") in text, f"the message is missing: {text}")
    return answer


@test
def stat_of_nothing(rig):
    rig.criu_vm("stat").check(0)
    check(json.loads(rig.criu_vm("stat", "--json").check(0).out) == [], "not an empty list")
    check(metrics(rig) == {}, "metrics of no VM")
    for flags in ([], ["--watch"], ["--json"], ["--prometheus"]):
        rig.fails("stat", "nobody", *flags, says=["nobody"])
    rig.fails("stat", "../run", says=["../run"])
    rig.fails("stat", "", says=["criu-vm stat"])
    for args in ([], ["--json"]):
        check(rig.criu_vm("stat", "--run-dir", f"{rig.tmp}/never-made", *args).check(0).out, "nothing was said")
    rig.fails("stat", "--prometheus", "--json", status=2, says=["--prometheus"])
    rig.fails("stat", "--prometheus", "--watch", status=2, says=["--prometheus"])


@test
def stat_of_garbage(rig):
    """What is in the run directory is not trusted."""
    states = {"empty": b"", "garbage": b"\0\xff{{{", "array": b"[]", "other": b'{"version": 99}', "negative": b'{"version": 1, "qemu": -1}',
              "huge": b'{"version": 1, "qemu": 1e300}', "deep": b"[" * 10000, "big": b" " * (2 << 20)}
    for name, state in states.items():
        os.mkdir(f"{rig.tmp}/run/{name}")
        with open(f"{rig.tmp}/run/{name}/state", "wb") as f:
            f.write(state)
        check(json.loads(rig.criu_vm("stat", name, "--json").check(0).out)["state"] != "served", "who serves that?")
        rig.criu_vm("stat", name).check(0)
        check(metrics(rig, name)["criu_vm_up", f'vm="{name}"'] == 0, "who serves that?")
        rig.fails("lazy-pages", "--name", name)
    check(len(json.loads(rig.criu_vm("stat", "--json").check(0).out)) == len(states), "not all are listed")
    check(sum(name == "criu_vm_up" for name, _ in metrics(rig)) == len(states), "not all have metrics")
    rig.criu_vm("stat").check(0)
    old = rig.checkpoint()
    for name in os.listdir(f"{rig.tmp}/run"):           # nobody's, so the name is free
        rig.restore(old, "--lazy-pages", "-o", f"{rig.tmp}/log", name=name).kill()
    rig.nothing_left()


@test
def stat_as_nobody(rig):
    vm = rig.restore(rig.checkpoint(ram=64), *rig.lazy_small())
    rig.fails("stat", rig.name, says=["ermission"], user=NOBODY)
    vm.runs_on()


@test
def stat_of_a_vm(rig):
    vm = rig.restore(rig.checkpoint(ram=64), *rig.lazy_small())
    vm.passes(3)
    answer = state_is(rig, "served", 1)
    check(answer["qemu_pid"] == vm.pid and answer["trouble"] is None and answer["trouble_s"] == 0, f"{answer}")
    check(answer["memory"]["memfd"] <= 16 << 20, f"more than the budget: {answer['memory']}")
    n, memory = answer["counts"], answer["memory"]
    check(sum(n[f"faults_{x}"] for x in ("memory", "zero", "swap", "source")) == n["faults"] >= n["vcpu_faults"] > 0, f"{n}")
    check(n["faults_swap"] and n["faults_source"] and n["page_in_ns"], f"nothing was paged: {n}")
    check(sum(memory[x] for x in ("resident", "swapped", "remote", "empty")) == answer["ram"] == 64 << 20, f"{memory}")
    check(sum(answer["queues"]) > 0, f"no chunk is on a queue: {answer['queues']}")
    us = answer["interval"]["page_in_us"]
    check(0 < us["p50"] <= us["p90"] <= us["p99"] <= us["max"], f"{us}")
    check(answer["interval"]["seconds"] == answer["uptime_s"] and answer["interval"]["faults_per_s"] > 0, f"{answer['interval']}")
    text = rig.criu_vm("stat", rig.name).check(0).out
    check("still needed" in text if memory["source"] else "no longer needed" in text, text)


@test
def stat_watches_a_vm(rig):
    rig.restore(rig.checkpoint(ram=64), *rig.lazy_small())
    lines = rig.criu_vm("stat", rig.name, "--watch", "--rounds", "3", "--json").check(0).out.splitlines()
    first, second, third = (json.loads(line) for line in lines)
    check(first["interval"]["seconds"] == first["uptime_s"], f"{first['interval']}")
    for now, before in ((second, first), (third, second)):
        interval = now["interval"]
        check(0.5 < interval["seconds"] < 100, f"{interval}")
        faults = now["counts"]["faults"] - before["counts"]["faults"]
        check(abs(interval["faults_per_s"] * interval["seconds"] - faults) < 1e-3, f"{faults} faults: {interval}")
        check(sum(interval["page_ins_log2_us"]) == sum(now["page_in_latency_log2_us"]) - sum(before["page_in_latency_log2_us"]), f"{interval}")
    for args in ([], [rig.name]):
        text = rig.criu_vm("stat", *args, "--watch", "--rounds", "2").check(0).out
        check(text.count(rig.name) >= 2 and "\033" not in text, f"not twice, or drawn for a terminal: {text}")


@test
def stat_watches_to_the_end(rig):
    vm = rig.restore(rig.checkpoint(ram=64), *rig.lazy_small())
    watch = rig.start_criu_vm("stat", rig.name, "--watch")
    vm.passes(3)
    vm.kill()
    check(rig.end_criu_vm(watch).check(0).out.endswith(f"{rig.name} has ended\n"), "the end was not told")


@test
def metrics_of_a_vm(rig):
    rig.restore(rig.checkpoint(ram=64), *rig.lazy_small()).passes(3)
    before, samples, after = rig.stat(), metrics(rig, rig.name), rig.stat()
    for name, key in {"faults_total": "faults", "page_in_bytes_total": "pages_in_", "page_out_bytes_total": "pages_out_"}.items():
        unit = 1 if key == "faults" else 4096
        counted = sum(n for (metric, _), n in samples.items() if metric == f"criu_vm_{name}") / unit
        low, high = (sum(n for k, n in x["counts"].items() if (k.startswith(key) if unit > 1 else k == key)) for x in (before, after))
        check(low <= counted <= high, f"{name}: {counted} is not between {low} and {high}")
    low, high = (sum(x["page_in_latency_log2_us"]) for x in (before, after))
    check(low <= check_histogram(samples, "criu_vm_page_in_seconds") <= high, "page-ins")


@test
def stat_is_documented(rig):
    """The man page names every key."""
    rig.restore(rig.checkpoint(ram=64), *rig.lazy_small())
    with open(PAGE, encoding="ascii") as f:
        words = set(re.findall(r"\w+", f.read()))

    def keys(x):
        return {k for key, value in x.items() for k in ({key} | keys(value))} if isinstance(x, dict) else set()
    check(not (missing := keys(rig.stat()) - words), f"criu-vm(1) does not name {missing}")


@test
def stat_in_every_state(rig):
    vm = rig.restore(rig.checkpoint(ram=64), *rig.lazy_small())
    served = state_is(rig, "served", 1)
    os.kill(served["pager_pid"], signal.SIGSTOP)
    state_is(rig, "silent", 0)
    os.kill(served["pager_pid"], signal.SIGCONT)
    wait_for("an answer", 10, lambda: rig.stat()["state"] == "served")
    for pid in filter(None, (served.get("supervisor_pid"), served["pager_pid"])):
        os.kill(pid, signal.SIGKILL)
        wait_for(f"the end of {pid}", 10, lambda pid=pid: rig.stat().get("pager_pid") != pid or pid == served.get("supervisor_pid"))
    answer = state_is(rig, "unserved", 0, "waits", f"lazy-pages --name {rig.name}")
    check(answer["qemu_pid"] == vm.pid and answer["images"] == rig.images(), f"{answer}")
    check("perhaps still needed" in rig.criu_vm("stat", rig.name).check(0).out, "the images are needed")
    vm.kill()
    state_is(rig, "ended", 0)
    rig.restore(vm, "--lazy-pages").kill()              # takes the name
    rig.nothing_left()
    os.mkdir(f"{rig.tmp}/run/{rig.name}")
    state_is(rig, "starting", 0)
    os.rmdir(f"{rig.tmp}/run/{rig.name}")


@test
def stat_without_private_memory(rig):
    rig.restore(rig.checkpoint(ram=64))
    answer = state_is(rig, "served", 1)
    check(not answer["paging"] and "memory" not in answer, f"{answer}")
    check("all in physical memory" in rig.criu_vm("stat", rig.name).check(0).out, "where is its memory?")
