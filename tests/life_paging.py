# SPDX-License-Identifier: GPL-2.0-only
"""--paging: how a VM is paged stays with it, from pager to pager, and changes when somebody asks for it."""
import json

from misuse_rig import cases, check, test

DEFAULT = {"method": "adaptive", "access": "auto", "queue_bits": 8, "spin": True, "folios": True}
CHOSEN = {"method": "1", "access": "none", "queue_bits": 4, "spin": False, "folios": False}
AS_OPTION = "method=1,access=none,queue-bits=4,spin=off,folios=off"


def tuned(rig, **expected):
    answer = rig.stat()
    check(answer["tuning"] == expected, f"it is paged with {answer['tuning']}, not {expected}")
    return answer


@test
def paging_by_default(rig):
    rig.paged()
    answer = tuned(rig, **DEFAULT)
    check(answer["access"] in ("idle", "minor"), f"who tells what is used? {answer['access']}")
    check(len(answer["queues"]) == 256, f"{len(answer['queues'])} queues")


@cases(method_1="method=1", method_2="method=2", minor="access=minor", none="access=none", few_queues="queue-bits=1", many_queues="queue-bits=12",
       no_spin="spin=off", no_folios="folios=off", all=AS_OPTION)
def paging(rig, option):
    """With each of them the guest finds all of its memory as it was."""
    vm = rig.paged("--paging", option)
    key, value = option.split(",")[0].split("=")
    says = rig.stat()["tuning"][key.replace("-", "_")]
    check(says == {"off": False}.get(value, int(value) if key == "queue-bits" else value), f"{option} became {says}")
    vm.passes(6)
    if key == "access":
        check((access := rig.stat()["access"]) == value, f"accesses are told by {access}")
    vm.runs_on()


@test
def paging_is_kept(rig):
    vm = rig.paged("--paging", AS_OPTION)
    tuned(rig, **CHOSEN)
    rig.kill_pager()
    tuned(rig, **CHOSEN)
    rig.criu_vm("lazy-pages", "--name", rig.name).check(0)
    tuned(rig, **CHOSEN)
    rig.kill_both()
    rig.criu_vm("lazy-pages", "--name", rig.name).check(0)
    check(len(tuned(rig, **CHOSEN)["queues"]) == 16, "16 queues were asked for")
    vm.runs_on()


@test
def paging_of_another_pager(rig):
    """One that follows a living one, and one that follows nobody."""
    vm = rig.paged("--paging", AS_OPTION)
    rig.criu_vm("lazy-pages", "--name", rig.name, "--paging", "queue-bits=6,method=2").check(0)
    tuned(rig, **{**CHOSEN, "queue_bits": 6, "method": "2"})
    rig.kill_both()
    rig.criu_vm("lazy-pages", "--name", rig.name, "--paging", "access=minor").check(0)
    tuned(rig, **{**CHOSEN, "queue_bits": 6, "method": "2", "access": "minor"})
    rig.fails("lazy-pages", "--name", rig.name, "--paging", "queue-bits=13", says=["queue-bits=13"], status=2)
    vm.runs_on()


@test
def paging_of_an_earlier_version(rig):
    """Its state says nothing of it."""
    vm = rig.paged("--paging", AS_OPTION)
    rig.kill_both()
    path = f"{rig.tmp}/run/{rig.name}/state"
    state = json.loads(rig.text_of(path))
    check(state.pop("tuning") == AS_OPTION, f"{state}")
    with open(path, "w", encoding="latin-1") as f:
        json.dump(state, f)
    rig.criu_vm("lazy-pages", "--name", rig.name).check(0)
    tuned(rig, **DEFAULT)
    vm.runs_on()


@test
def set_paging(rig):
    """While the VM runs, and for its next pager too; with another budget, or without."""
    vm = rig.paged(ram=64, budget=32)
    says = rig.criu_vm("set", rig.name, "--paging", "method=2").check(0).out
    check("method=2,access=auto" in says, says)
    tuned(rig, **{**DEFAULT, "method": "2"})
    vm.passes(3)
    for method, access in (("1", "none"), ("adaptive", "minor"), ("2", "none"), ("1", "auto")):
        rig.criu_vm("set", rig.name, "--paging", f"method={method},access={access}").check(0)
        answer = tuned(rig, **{**DEFAULT, "method": method, "access": access})
        check(answer["access"] == access or access == "auto", f"accesses are told by {answer['access']}")
        vm.passes(3)
    answer = json.loads(rig.criu_vm("set", rig.name, "--paging", "method=2", "--ram", "24M", "--json").check(0).out)
    check(answer["budget"] == 24 << 20 and answer["paging"].startswith("method=2,"), f"{answer}")
    rig.kill_pager()
    check(tuned(rig, **{**DEFAULT, "method": "2"})["memory"]["budget"] == 24 << 20, "the budget is another one")
    vm.runs_on()


@test
def set_paging_refused(rig):
    """What a pager has for its life, with what helps; nothing has changed then."""
    vm = rig.paged(ram=64, budget=32)
    for option in ("queue-bits=6", "spin=off", "folios=off", "method=1,queue-bits=6"):
        rig.fails("set", rig.name, "--paging", option, "--ram", "16M", says=[f"lazy-pages --name {rig.name} --paging {option}"])
    rig.fails("set", rig.name, "--paging", "method=1", "--ram", "1M", says=["1 MiB", "16 MiB"])
    for option in ("", "fast", "method=3", "method=1;spin=off"):
        rig.fails("set", rig.name, "--paging", option, says=["--paging"], status=2)
    rig.fails("set", "--paging", "method=1", status=2)
    check(tuned(rig, **DEFAULT)["memory"]["budget"] == 32 << 20, "the budget is another one")
    rig.criu_vm("set", rig.name, "--paging", "queue-bits=8,method=1").check(0)  # as it is
    vm.runs_on()
