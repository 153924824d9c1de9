#!/usr/bin/env python3
"""What a run of the end-to-end tests with two versions of Cyrus came to: called by versions.sh.

    tests/versions.py PAIR LOG

Prints a line for the table and names what is not as it should be; exit code 1 where something is. A
failure counts as known only where tests/known_differences.toml names the test for this pair, and where it
failed with the words written there. For a scenario that is run in several ways these are the same words
stock to stock and through syncmux: it does no worse. One that is listed as failing stock to stock and did
not fail is an error too, so that the list does not grow old.
"""

import fnmatch
import pathlib
import re
import sys
import tomllib

pair, log = sys.argv[1:3]
master, replica = pair.split("-")
text = pathlib.Path(log).read_text(errors="replace")
table = tomllib.loads(pathlib.Path(__file__).with_name("known_differences.toml").read_text())

result = re.compile(r"^ +(PASS|FAIL|SIG\w+|TIMEOUT|ABORT|LEAK)\s+\[[^\]]*\][^\n]*? syncmux::e2e (\S+)$", re.M)
outcome = {name: kind for kind, name in result.findall(text)}
failed = sorted(name for name, kind in outcome.items() if kind not in ("PASS", "LEAK"))
panic = re.compile(r"^ +thread '([^']+)' \(\d+\) panicked at (.*?)(?=^ +stack backtrace:|^ +note: run with)", re.M | re.S)
said = {}
for name, words in panic.findall(text):
    said.setdefault(name, " ".join(words.split()))


def holds(entry):
    return master in entry.get("masters", [master]) and replica in entry.get("replicas", [replica])


entries = [entry for entry in table["difference"] if holds(entry)]


def known(name):
    listed = [entry for entry in entries if any(fnmatch.fnmatch(name, test) for test in entry["tests"])]
    return any(words in said.get(name, "") for entry in listed for words in entry["says"])


wrong = {name: said.get(name, "it did not say why")[:400] for name in failed if not known(name)}
expected = [name for name in failed if name not in wrong]
for entry in entries:
    for name, kind in outcome.items():
        listed = any(fnmatch.fnmatch(name, test) for test in entry["tests"])
        if listed and kind == "PASS" and name.endswith("::direct") and not entry.get("sometimes"):
            wrong[name] = "is listed as a known difference, and passed"
if not outcome:
    wrong["no test was run"] = text[-400:]
passed = len(outcome) - len(failed)
print(f"{pair:10} {passed:7} {len(expected):7} {len(wrong):7}  {' '.join(wrong)}")
for name, words in wrong.items():
    print(f"    {name}: {words}", file=sys.stderr)
sys.exit(1 if wrong else 0)
