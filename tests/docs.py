#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""The man page, the README and the completion know the commands and options that the binary has, and no others; docs/paging.md knows
its tracepoints.

    docs.py [--criu-vm FILE]
"""
import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PAGE = f"{ROOT}/docs/criu-vm.1"
COMPLETION = f"{ROOT}/completion/criu-vm.bash"
TESTS = []


class Failed(Exception):
    pass


class Skip(Exception):
    pass


def test(function):
    TESTS.append(function)
    return function


def check(good, what):
    if not good:
        raise Failed(what)


def same(what, known, said):
    """Two sets, or dictionaries, of options."""
    known, said = (dict(x) if isinstance(x, dict) else dict.fromkeys(x) for x in (known, said))
    for name in known:
        check(name in said, f"{what}: '{name}' is missing")
        check(known[name] == said[name], f"{what}: '{name}' is {known[name]}, not {said[name]}")
    check(not said.keys() - known.keys(), f"{what}: there is no {', '.join(map(str, said.keys() - known.keys()))}")


def run(*line, **options):
    p = subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False, **options)
    return p.returncode, p.stdout + p.stderr


class Docs:
    def __init__(self, criu_vm):
        self.criu_vm = criu_vm
        tables = json.loads(subprocess.run([criu_vm, "help", "--tables"], capture_output=True, check=True).stdout)
        self.commands = {c["name"]: c["options"] for c in tables["commands"]}
        self.common = tables["common"]
        with open(PAGE, encoding="ascii") as f:
            self.page = f.read()

    def section(self, title, level="Sh"):
        """Of the page, to the next section of that level or a higher one."""
        found = re.search(rf"^\.{level} {re.escape(title)}\n(.*?)(?=^\.Sh |^\.{level} |\Z)", self.page, re.M | re.S)
        check(found, f"the page has no {title}")
        return found[1]

    def spellings(self, options):
        """Of options as they are written: '--ram', '-D', with whether a value follows. It does not if it can be left out ("[=VALUE]")."""
        return {s: bool(o["arg"]) and not o["arg"].startswith("[") for o in options for s in ([f"--{o['name']}"] + ([f"-{o['letter']}"] if o["letter"] else []))}

    def complete(self, *words, folder=ROOT):
        """What the completion offers at the end of a line; bash has taken the line apart."""
        script = f'source "{COMPLETION}"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _criu_vm; printf "%s\\n" "${{COMPREPLY[@]}}"'
        status, out = run("bash", "--norc", "-c", script, "bash", "-", self.criu_vm, *words, cwd=folder)
        check(status == 0, f"completion of {words}: {out}")
        return set(out.split("\n")) - {""}


@test
def page_is_clean(_):
    formatters = [["mandoc", "-T", "lint", "-W", "warning"], ["groff", "-mdoc", "-ww", "-z"]]
    there = [f for f in formatters if shutil.which(f[0])]
    if not there:
        raise Skip("neither mandoc nor groff")
    for line in there:
        status, out = run(*line, PAGE)
        check(status == 0 and not out, f"{line[0]}: {out}")


@test
def page_knows_the_commands(docs):
    titles = re.findall(r"^\.Ss (.*)$", docs.section("COMMANDS"), re.M)
    same("the page's commands", [*docs.commands, "Common options"], titles)
    same("the page's synopsis", docs.commands.keys(), re.findall(r"^\.Cm (\S+)$", docs.section("SYNOPSIS"), re.M))


@test
def page_knows_the_options(docs):
    for title, options in [*docs.commands.items(), ("Common options", docs.common)]:
        said = {}
        for item in re.findall(r"^\.It (Fl .*)$", docs.section(title, "Ss"), re.M):
            option = re.fullmatch(r"(?:Fl (\w) , )?Fl -([\w-]+)(?: Ar (\S+)| Ns Op (=\S+))?", item)
            check(option, f"the page, {title}: what is '{item}'?")
            said[option[2]] = option[1] or "", f"[{option[4]}]" if option[4] else option[3]
        same(f"the page, {title}", {o["name"]: (o["letter"], o["arg"]) for o in options}, said)


@test
def synopsis_has_the_options(docs):
    """Each by one of its spellings; and no others."""
    for command, synopsis in re.findall(r"^\.Cm (\S+)$(.*?)(?=^\.Nm|\Z)", docs.section("SYNOPSIS"), re.M | re.S):
        said = {"-" + s for s in re.findall(r"Fl (-[\w-]+|\w)", synopsis) + re.findall(r"\| (-[\w-]+)", synopsis)}
        same(f"the synopsis of {command}", [o["name"] for o in docs.commands[command]],
             [next((o["name"] for o in docs.commands[command] if s in (f"--{o['name']}", f"-{o['letter']}")), s) for s in said])


@test
def examples_are_right(docs):
    with open(f"{ROOT}/README.md", encoding="utf-8") as f:
        readme = f.read()
    lines = re.findall(r"^(?: {4})?[#$] criu-vm (.*)$", readme + docs.section("EXAMPLES"), re.M)
    check(len(lines) > 10, f"only {len(lines)} examples were found")
    for line in lines:
        words = re.split(r"  +#| [|>&]| -- ", line)[0].split()
        known = docs.spellings(docs.commands.get(words[0], []) + docs.common)
        check(words[0] in docs.commands, f"there is no command {words[0]}: {line}")
        for word in words[1:]:
            check(not word.startswith("-") or word.split("=")[0] in known, f"{words[0]} has no {word}: {line}")


@test
def tracepoints_are_those_of_the_binary(docs):
    """docs/paging.md names each, with its arguments."""
    if not shutil.which("readelf"):
        raise Skip("no readelf")
    with open(f"{ROOT}/docs/paging.md", encoding="utf-8") as f:
        section = re.search(r"^## Tracepoints\n(.*?)(?=^## |\Z)", f.read(), re.M | re.S)
    check(section, "docs/paging.md has no section of tracepoints")
    said = {name: len(arguments.split(",")) for name, arguments in re.findall(r"^\| `(\w+)` \| `([^`]*)` \|", section[1], re.M)}
    status, out = run("readelf", "-nW", docs.criu_vm)
    check(status == 0, f"readelf: {out}")
    known = {}
    for name, arguments in re.findall(r"Provider: criu_vm\n\s+Name: (\w+)\n.*\n\s+Arguments: ?(.*)", out):
        known.setdefault(name, set()).add(len(arguments.split()))
    same("tracepoints of docs/paging.md", known, {name: {nr} for name, nr in said.items()})


@test
def completion_knows_the_commands(docs):
    same("completion of commands", [*docs.commands, "--help", "--version"], docs.complete(""))
    same("completion of 'st'", ["stat"], docs.complete("st"))


@test
def completion_knows_the_options(docs):
    for command, own in docs.commands.items():
        known = docs.spellings(own + docs.common)
        same(f"completion of {command}", known.keys(), docs.complete(command, "-"))
        for option, valued in known.items():
            offers = bool(docs.complete(command, option, "--j"))
            check(offers != valued, f"completion of {command} thinks that {option} takes {'no' if valued else 'a'} value")


@test
def completion_of_arguments(docs):
    with tempfile.TemporaryDirectory(dir="/var/tmp") as tmp:
        for folder in ("run/web", "run/db", "run/web-2", "images-1"):
            os.makedirs(f"{tmp}/{folder}")
        for name in ("web.qmp", "run/file"):
            with open(f"{tmp}/{name}", "wb"):
                pass
        here, run_dir = {"run", "images-1"}, ("--run-dir", f"{tmp}/run")
        for words, offers in {
            ("stat", *run_dir, ""): {"web", "db", "web-2"},
            ("stat", *run_dir, "we"): {"web", "web-2"},
            ("stat", "--run-dir", "=", f"{tmp}/run", "d"): {"db"},
            ("set", *run_dir, "--ram", "1G", "d"): {"db"},
            ("set", *run_dir, "--ram", ""): set(),
            ("set", *run_dir, "--paging", "m"): {"method="},
            ("lazy-pages", *run_dir, "--name", "d"): {"db"},
            ("lazy-pages", *run_dir, "--name", "=", "d"): {"db"},
            ("lazy-pages", *run_dir, "--name", "="): {"web", "db", "web-2"},
            ("restore", *run_dir, "--name", ""): set(),
            ("restore", "-D", ""): here,
            ("restore", "--images-dir", "=", "im"): {"images-1"},
            ("restore", "-D", "images-1", "--", "-"): set(),
            ("dump", *run_dir, "we"): {"web.qmp", "web", "web-2"},
            ("show", ""): here | {"web.qmp"},
            ("show", "--log-file", "w"): {"web.qmp"},
            ("check", "--feature", "uffd-w"): {"uffd-wp", "uffd-wp-unpopulated", "uffd-wp-async"},
            ("nonsense", ""): set(),
        }.items():
            same(f"completion of {' '.join(words)}", offers, docs.complete(*words, folder=tmp))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--criu-vm", default=f"{ROOT}/build/criu-vm", metavar="FILE", help="the binary (build/criu-vm)")
    docs = Docs(os.path.abspath(parser.parse_args().criu_vm))
    count = {"ok": 0, "FAIL": 0, "skip": 0}
    for function in TESTS:
        result, reason = "ok", ""
        try:
            function(docs)
        except Skip as e:
            result, reason = "skip", f" ({e})"
        except Failed as e:
            result, reason = "FAIL", f" ({e})"
        count[result] += 1
        print(f"{result:4} {function.__name__.replace('_', '-')}{reason}")
    print(f"{count['ok']} passed, {count['FAIL']} failed, {count['skip']} skipped")
    return 1 if count["FAIL"] else 0


if __name__ == "__main__":
    sys.exit(main())
