#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# clang-tidy (.clang-tidy), cppcheck and shellcheck over all that git knows or may know. Says nothing but what is wrong.
set -u

status=0
sources=$(git ls-files -co --exclude-standard '*.c' ':!tests/zdtm/guest/*')
scripts=$(git ls-files -co --exclude-standard '*.sh' '*.bash' .ci/run)

log=$(mktemp)
trap 'rm -f "$log"' EXIT
# shellcheck disable=SC2086,SC2016 # lists of names without spaces; "$@" is the inner shell's
printf '%s\n' $sources | xargs -P "$(nproc)" -n 4 sh -c 'clang-tidy --quiet "$@" -- -std=gnu17 -D_GNU_SOURCE -I. -Ibuild/obj -I/usr/include/compel -isystem /usr/include/libnl3' tidy \
	2>"$log" || status=1
grep -vE '^[0-9]+ warnings? (generated|treated as error)|^Suppressed|^Use -header-filter' "$log"

# Its leak checks do not know cleanup attributes, and its mmap() takes no -1.
# shellcheck disable=SC2086
cppcheck --quiet --std=c11 --enable=warning,performance --inline-suppr --error-exitcode=1 -j "$(nproc)" -D_GNU_SOURCE -I. \
	--library=posix --suppress=missingIncludeSystem --suppress=unknownMacro --suppress=missingInclude \
	--suppress=resourceLeak --suppress=memleak --suppress=leakReturnValNotUsed --suppress=leakNoVarFunctionCall \
	--suppress=invalidFunctionArg --suppress=legacyUninitvar --suppress=*:/usr/include/* $sources || status=1

# shellcheck disable=SC2086
shellcheck $scripts || status=1
exit $status
