#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# clang-tidy (.clang-tidy), cppcheck and shellcheck over all that git knows or may know. Says nothing but what is wrong.
set -u

status=0
sources=$(git ls-files -co --exclude-standard '*.c' ':!tests/zdtm/guest/*')
scripts=$(git ls-files -co --exclude-standard '*.sh' .ci/run)

# shellcheck disable=SC2086 # lists of names without spaces
printf '%s\n' $sources | xargs -P "$(nproc)" -n 4 clang-tidy --quiet -- -std=gnu17 -D_GNU_SOURCE -I. -Ibuild/obj -I/usr/include/compel \
	2>/tmp/criu-vm-lint.$$ || status=1
grep -vE '^[0-9]+ warnings? (generated|treated as error)|^Suppressed|^Use -header-filter' /tmp/criu-vm-lint.$$
rm -f /tmp/criu-vm-lint.$$

# shellcheck disable=SC2086
cppcheck --quiet --std=c11 --enable=warning,performance,portability --inline-suppr --error-exitcode=1 -j "$(nproc)" -D_GNU_SOURCE -I. -Ibuild/obj \
	--library=posix --suppress=missingIncludeSystem --suppress=unknownMacro --suppress=uninitvar:tests/unit/* \
	--suppress=resourceLeak --suppress=memleak --suppress=*:/usr/include/* $sources || status=1

# shellcheck disable=SC2086
shellcheck $scripts || status=1
exit $status
