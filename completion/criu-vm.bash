# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=bash disable=SC2207 # what compgen prints has no spaces, but for file names, which mapfile takes
# Completion of criu-vm(1) for bash. tests/docs.py holds the options against those of the binary.

# A colon: a value follows.
_criu_vm_common="--run-dir: --log-file: -o: --verbose -v --json --help -h"
declare -A _criu_vm_options=(
	[check]="--feature:"
	[dump]="--tree: -t: --images-dir: -D: --stream --leave-running -R --leave-stopped -s --prev-images-dir: --track-mem --background --disk-snapshot --compress:"
	[pre-dump]="--tree: -t: --images-dir: -D: --prev-images-dir: --compress: --untrack"
	[restore]="--images-dir: -D: --stream --page-server: --name: --lazy-pages --fill --ram: --swap: --swap-sparse --paging: --qemu: --force --tls-creds: --insecure --user:"
	[migrate]="--tree: -t: --name: --ram: --swap: --lazy --max-rounds: --downtime-limit: --channels: --max-bandwidth: --compress: --tls-creds: --insecure --resume"
	[stat]="--watch -w --prometheus --missing"
	[set]="--ram: --paging: --swap: --swap-sparse"
	[lazy-pages]="--address: --port: --total-ram: --vm-ram: --swap: --swap-sparse --paging: --map: --tls-creds: --insecure --user: --qemu: --once --images: --name: --images-dir: -D: --page-server:"
	[verify]="--stream"
	[merge]="--output: -o:"
	[show]=""
)

# VMs that are recorded in the run directory, that of the line if it names one.
_criu_vm_names() {
	local dir=/run/criu-vm i

	for ((i = 2; i < COMP_CWORD; i++)); do
		[[ ${COMP_WORDS[i]} == --run-dir ]] || continue
		dir=${COMP_WORDS[i + 1]}
		[[ $dir != = ]] || dir=${COMP_WORDS[i + 2]}
	done
	compgen -d -- "${dir/#\~\//$HOME/}/$1" | sed 's|.*/||'
}

# compgen's -d: folders, -f: files.
_criu_vm_files() {
	compopt -o filenames 2>/dev/null
	mapfile -t COMPREPLY < <(compgen "$1" -- "$2")
}

_criu_vm_value() {
	local option=$1 word=$2

	case $option in
	-o)
		if [[ ${COMP_WORDS[1]} == merge ]]; then
			_criu_vm_files -d "$word"
		else
			_criu_vm_files -f "$word"
		fi
		;;
	--run-dir | --images-dir | --images | --prev-images-dir | --output | --tls-creds | -D) _criu_vm_files -d "$word" ;;
	--log-file | --swap | --qemu | --map) _criu_vm_files -f "$word" ;;
	--feature) COMPREPLY=($(compgen -W "$("${COMP_WORDS[0]}" check --feature '?' 2>&1 | sed 's/.*://')" -- "$word")) ;;
	--user) COMPREPLY=($(compgen -u -- "$word")) ;;
	--tree | -t) COMPREPLY=($(compgen -W "$(pgrep qemu-system)" -- "$word")) ;;
	--compress) COMPREPLY=($(compgen -W "zstd zstd:" -- "$word")) ;;
	--paging)
		compopt -o nospace 2>/dev/null
		COMPREPLY=($(compgen -W "method= access= queue-bits= spin= folios=" -- "$word"))
		;;
	--name) [[ ${COMP_WORDS[1]} == restore ]] || COMPREPLY=($(_criu_vm_names "$word")) ;;
	esac
}

_criu_vm_argument() {
	case ${COMP_WORDS[1]} in
	stat | set) COMPREPLY=($(_criu_vm_names "$1")) ;;
	show) _criu_vm_files -f "$1" ;;
	verify | merge) _criu_vm_files -d "$1" ;;
	dump | pre-dump | migrate) # a name, or a QMP socket
		_criu_vm_files -f "$1"
		COMPREPLY+=($(_criu_vm_names "$1"))
		;;
	esac
}

_criu_vm() {
	local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} options i

	COMPREPLY=()
	if ((COMP_CWORD == 1)); then
		COMPREPLY=($(compgen -W "${!_criu_vm_options[*]} --help --version" -- "$word"))
		return
	fi
	for ((i = 2; i < COMP_CWORD; i++)); do
		[[ ${COMP_WORDS[i]} != -- ]] || return # what follows is QEMU's
	done
	if [[ $word == = ]]; then # bash takes --option=value apart
		word=''
	elif [[ $before == = ]]; then
		before=${COMP_WORDS[COMP_CWORD - 2]}
	fi
	options="${_criu_vm_options[${COMP_WORDS[1]}]} $_criu_vm_common"
	if [[ " $options " == *" $before: "* ]]; then
		_criu_vm_value "$before" "$word"
	elif [[ $word == -* ]]; then
		COMPREPLY=($(compgen -W "${options//:/}" -- "$word"))
	else
		_criu_vm_argument "$word"
	fi
}

complete -F _criu_vm criu-vm
