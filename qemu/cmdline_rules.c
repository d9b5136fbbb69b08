// SPDX-License-Identifier: GPL-2.0-only
// What becomes of each of QEMU's options.
#include "qemu/cmdline_int.h"

#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "qemu/args.h"
#include "util/cleanup.h"
#include "util/log.h"
#include "util/size.h"

int cmdline_refuse(const struct cmdline_option *opt, const char *why)
{
	log_err("QEMU option -%s%s%s: %s", opt->rule->name, opt->value ? " " : "", opt->value ?: "", why);
	return -EOPNOTSUPP;
}

int cmdline_invalid(const struct cmdline_option *opt, const char *why)
{
	cmdline_refuse(opt, why);
	return -EINVAL;
}

// ---- guest RAM and machine

bool cmdline_is_name(const char *s)
{
	return *s && !s[strspn(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")];
}

// What of a recorded memory backend is not about how its host provided the memory.
static const char *const kept_of_backend[] = {
	"host-nodes", "policy", "dump", "merge", "x-use-canonical-path-for-ramblock-id", NULL,
};

static int ram_from_json(struct cmdline_option *opt, const struct qemu_cmdline_ram *ram)
{
	json_t *was = json_loads(opt->value, 0, NULL), *is;
	char path[32], *text;

	snprintf(path, sizeof path, "/proc/self/fd/%d", ram->fd);
	is = json_pack("{s:s, s:s, s:I, s:s, s:b}", "qom-type", "memory-backend-file", "id", opt->id, "size", (json_int_t)ram->len,
		       "mem-path", path, "share", 1);
	for (const char *const *k = kept_of_backend; *k; k++)
		if (json_object_get(was, *k))
			json_object_set(is, *k, json_object_get(was, *k));
	text = json_dumps(is, JSON_COMPACT);
	json_decref(is);
	json_decref(was);
	if (!text)
		return -ENOMEM;
	free(opt->value);
	opt->value = text;
	return 0;
}

static int fix_object(struct cmdline *c, struct cmdline_option *opt)
{
	_cleanup_free_ char *type = qemu_opt_get(opt->value, "qom-type", "qom-type");
	const struct qemu_cmdline_ram *ram;
	char *text = NULL;
	size_t len;
	FILE *f;

	if (!type || strncmp(type, "memory-backend-", 15))
		return 0;
	if (!strcmp(type, "memory-backend-epc"))
		return cmdline_refuse(opt, "the memory of SGX enclaves cannot be read, so it cannot be restored");
	if (cmdline_is_on(opt->value, "qom-type", "readonly") || cmdline_is_on(opt->value, "qom-type", "rom"))
		return cmdline_refuse(opt, "read-only memory backends are not supported");
	if (opt->ours)
		return cmdline_invalid(opt, "guest RAM is given by criu-vm (--ram, --swap), it cannot be replaced");
	if (!opt->id || !cmdline_is_name(opt->id))
		return cmdline_invalid(opt, "a memory backend without a good id");
	opt->is_ram = true;
	if (!c->o)
		return 0;
	if (!strcmp(opt->id, QEMU_CMDLINE_RAM_ID)) {
		opt->drop = true; // ours, from an earlier restore: made anew
		return 0;
	}
	ram = cmdline_ram(c->o, opt->id);
	if (!ram)
		return cmdline_invalid(opt, "the checkpoint has no RAM of this id");
	if (*opt->value == '{')
		return ram_from_json(opt, ram);
	f = open_memstream(&text, &len);
	if (!f)
		return -ENOMEM;
	fprintf(f, CMDLINE_RAM_FMT, CMDLINE_RAM_ARGS(opt->id, ram));
	cmdline_put_words(f, opt->value, kept_of_backend, true);
	return cmdline_set_value(opt, f, &text);
}

static int fix_machine(struct cmdline *c, struct cmdline_option *opt)
{
	static const char *const not_kept[] = { "type", "memory-backend", NULL };
	_cleanup_free_ char *type = qemu_opt_get(opt->value, "type", "type");
	const char *list = opt->value;
	struct cmdline_word first = { 0 };

	if (*list == '{')
		return cmdline_invalid(opt, "JSON is not understood here, use key=value");
	if (opt->ours && qemu_opt_has(list, "type", "memory-backend"))
		return cmdline_invalid(opt, "guest RAM is given by criu-vm (--ram, --swap), leave memory-backend out");
	if (opt->ours && type && strcmp(type, c->o->machine)) {
		log_err("the VM is a machine of the type %s and stays one; leave '%s' out: -machine key=value,...", c->o->machine, type);
		return -EINVAL;
	}
	if (cmdline_check_keys(opt))
		return -EINVAL;
	cmdline_next_word(&list, &first);
	if (first.key_len != first.len) // else it is the type
		list = opt->value;
	cmdline_put_words(c->machine, list, not_kept, false);
	c->has_accel |= qemu_opt_has(opt->value, "type", "accel");
	opt->drop = true;
	return 0;
}

static int fix_nographic(struct cmdline *c, struct cmdline_option *opt)
{
	fputs(",graphics=off", c->machine);
	opt->drop = true;
	return 0;
}

static int fix_accel(struct cmdline *c, struct cmdline_option *opt)
{
	(void)opt;
	c->has_accel = true;
	return 0;
}

static int without(struct cmdline_option *opt, const char *const *keys)
{
	char *text = NULL;
	size_t len;
	FILE *f = open_memstream(&text, &len);
	int err;

	if (!f)
		return -ENOMEM;
	cmdline_put_words(f, opt->value, keys, false);
	err = cmdline_set_value(opt, f, &text);
	if (err)
		return err;
	opt->drop = !*opt->value;
	if (!opt->drop)
		memmove(opt->value, opt->value + 1, strlen(opt->value)); // the first comma
	return 0;
}

static int fix_overcommit(struct cmdline *c, struct cmdline_option *opt)
{
	(void)c;
	return without(opt, (const char *const[]){ "mem-lock", NULL });
}

static int fix_runas(struct cmdline *c, struct cmdline_option *opt)
{
	(void)c;
	opt->drop = !opt->ours;
	return 0;
}

static bool can_chroot(const struct cmdline *c, const struct cmdline_option *opt)
{
	if (!c->o || c->o->as_root || opt->ours)
		return true;
	log_warn("QEMU option -%s %s: only root can do this, so the restored QEMU is not confined to that folder", opt->rule->name, opt->value);
	return false;
}

static int fix_chroot(struct cmdline *c, struct cmdline_option *opt)
{
	opt->drop = !can_chroot(c, opt);
	return 0;
}

static int fix_run_with(struct cmdline *c, struct cmdline_option *opt)
{
	const char *const for_good[] = { "exit-with-parent", opt->ours ? NULL : "user", NULL };
	_cleanup_free_ char *chroot = qemu_opt_get(opt->value, NULL, "chroot");
	int err = chroot && !can_chroot(c, opt) ? without(opt, (const char *const[]){ "chroot", NULL }) : 0;

	return err || opt->drop ? err : without(opt, for_good);
}

// ---- display and logs

static int fix_display(struct cmdline *c, struct cmdline_option *opt)
{
	static const char *const local[] = { "gtk", "sdl", "cocoa", "curses", "default", "spice-app" };
	_cleanup_free_ char *type = qemu_opt_get(opt->value, "type", "type");

	c->has_display = true;
	for (size_t i = 0; type && i < ARRAY_SIZE(local); i++)
		if (!strcmp(type, local[i]))
			return cmdline_set_string(opt, "none");
	return 0;
}

// QEMU begins this file anew. Without it, its messages go where all its output goes.
static int fix_logfile(struct cmdline *c, struct cmdline_option *opt)
{
	(void)c;
	opt->drop = !opt->ours && !strchr(opt->value, '%'); // a name with the pid in it is a new one
	if (opt->drop)
		log_info("QEMU option -D %s: the restored QEMU would overwrite this file, so its log goes to criu-vm's of the VM", opt->value);
	return 0;
}

// ---- disks

static int fix_drive(struct cmdline *c, struct cmdline_option *opt)
{
	(void)c;
	if (cmdline_is_on(opt->value, NULL, "snapshot"))
		return cmdline_refuse(opt, "what the VM wrote is in a temporary file that is deleted already; it cannot be restored");
	return 0;
}

static int fix_icount(struct cmdline *c, struct cmdline_option *opt)
{
	(void)c;
	if (qemu_opt_has(opt->value, "shift", "rr"))
		return cmdline_refuse(opt, "a VM that is being recorded or replayed cannot be restored");
	return 0;
}

// ---- descriptors that QEMU was started with: nobody can give them again, and their numbers may be those of others now

static bool key_is_fd(const char *key, size_t key_len, const char *value, size_t value_len)
{
	static const char *const names[] = { "fd", "fds", "vhostfd", "vhostfds", "sock_fd" };
	const char *dot = memrchr(key, '.', key_len);
	size_t skip = dot ? (size_t)(dot + 1 - key) : 0;

	key += skip;
	key_len -= skip;
	for (size_t i = 0; i < ARRAY_SIZE(names); i++)
		if (key_len == strlen(names[i]) && !memcmp(key, names[i], key_len))
			return true;
	return key_len == 4 && !memcmp(key, "type", 4) && value_len == 2 && !memcmp(value, "fd", 2);
}

static bool path_is_fd(const char *s)
{
	return strstr(s, "/dev/fdset/") || strstr(s, "/dev/fd/") || strstr(s, "/proc/self/fd/");
}

static bool json_uses_fd(const json_t *v)
{
	const char *key;
	json_t *e;
	size_t i;

	if (json_is_string(v))
		return path_is_fd(json_string_value(v));
	json_array_foreach(v, i, e)
		if (json_uses_fd(e))
			return true;
	json_object_foreach((json_t *)v, key, e) {
		const char *s = json_string_value(e) ?: "";

		if (key_is_fd(key, strlen(key), s, strlen(s)) || json_uses_fd(e))
			return true;
	}
	return false;
}

static int refuse_fds(const struct cmdline_option *opt)
{
	const char *list = opt->value;
	bool found = path_is_fd(list);
	json_error_t why;
	struct cmdline_word w;

	if (opt->rule->opts && *list == '{') {
		json_t *v = json_loads(list, 0, &why);

		if (!v)
			return cmdline_invalid(opt, why.text);
		found = json_uses_fd(v);
		json_decref(v);
	} else if (opt->rule->opts) {
		if (cmdline_check_keys(opt))
			return -EINVAL;
		while (cmdline_next_word(&list, &w))
			if (w.key_len < w.len)
				found |= key_is_fd(w.s, w.key_len, w.s + w.key_len + 1, w.len - w.key_len - 1);
	}
	return found ? cmdline_refuse(opt, "the descriptor that QEMU was started with cannot be given again; use a name instead") : 0;
}

// ---- the rules, for all that qemu-options.hx of QEMU 7.2 to 10 has for x86 and a running VM can have been started with

#define KEEP(n) { .name = n }
#define KEEP_FLAG(n) { .name = n, .flag = true }
#define OPTS(n) { .name = n, .opts = true }
#define DROP(n) { .name = n, .drop = true }
#define DROP_FLAG(n) { .name = n, .flag = true, .drop = true }
#define FIX(n, f) { .name = n, .fix = f }
#define FIX_FLAG(n, f) { .name = n, .flag = true, .fix = f }
#define FIX_OPTS(n, f) { .name = n, .opts = true, .fix = f }
#define REFUSE(n, why) { .name = n, .refuse = why }
#define REFUSE_FLAG(n, why) { .name = n, .flag = true, .refuse = why }

static const struct cmdline_rule rules[] = {
	FIX("accel", fix_accel),
	KEEP("acpitable"), KEEP("action"),
	REFUSE("add-fd", "the descriptors that QEMU was given cannot be given again; use file names"),
	KEEP("append"), KEEP_FLAG("async-teardown"), OPTS("audio"), OPTS("audiodev"), KEEP("bios"), OPTS("blockdev"),
	KEEP("boot"), KEEP("cdrom"),
	FIX_OPTS("chardev", cmdline_fix_chardev),
	FIX("chroot", fix_chroot), KEEP("compat"), KEEP("cpu"),
	FIX("D", fix_logfile),
	KEEP("d"), DROP_FLAG("daemonize"),
	FIX("debugcon", cmdline_fix_port),
	OPTS("device"), KEEP("dfilter"),
	FIX("display", fix_display),
	FIX_OPTS("drive", fix_drive),
	KEEP("dtb"), KEEP("echr"),
	FIX_FLAG("enable-kvm", fix_accel),
	KEEP_FLAG("enable-sync-profile"), KEEP("fda"), KEEP("fdb"), OPTS("fsdev"), DROP_FLAG("full-screen"), KEEP("fw_cfg"),
	FIX("gdb", cmdline_fix_monitor),
	KEEP("global"), KEEP("hda"), KEEP("hdb"), KEEP("hdc"), KEEP("hdd"),
	FIX("icount", fix_icount),
	DROP("incoming"), KEEP("initrd"), OPTS("iscsi"), KEEP_FLAG("jitdump"), KEEP("k"), KEEP("kernel"), KEEP("L"),
	DROP("loadvm"), KEEP("m"),
	FIX("machine", fix_machine),
	DROP("mem-path"), DROP_FLAG("mem-prealloc"),
	FIX_OPTS("mon", cmdline_fix_mon),
	FIX("monitor", cmdline_fix_monitor),
	KEEP("msg"), KEEP("mtdblock"), KEEP("name"), FIX_OPTS("net", cmdline_fix_net), FIX_OPTS("netdev", cmdline_fix_net),
	FIX_OPTS("nic", cmdline_fix_net), KEEP_FLAG("no-acpi"),
	KEEP_FLAG("no-fd-bootchk"),
	KEEP_FLAG("no-hpet"), KEEP_FLAG("no-reboot"), KEEP_FLAG("no-shutdown"), KEEP_FLAG("no-user-config"),
	KEEP_FLAG("nodefaults"),
	FIX_FLAG("nographic", fix_nographic),
	KEEP("numa"),
	FIX_OPTS("object", fix_object),
	KEEP_FLAG("one-insn-per-tb"), KEEP_FLAG("only-migratable"), KEEP("option-rom"),
	FIX("overcommit", fix_overcommit),
	FIX("parallel", cmdline_fix_port),
	KEEP_FLAG("perfmap"), KEEP("pflash"), DROP("pidfile"),
	REFUSE("plugin", "the state of TCG plugins cannot be saved"),
	KEEP_FLAG("portrait"),
	REFUSE_FLAG("preconfig", "what was set up by QMP before the machine existed cannot be set up again"),
	FIX("qmp", cmdline_fix_monitor),
	FIX("qmp-pretty", cmdline_fix_monitor),
	REFUSE("qtest", "a VM that is driven by qtest cannot be restored"),
	REFUSE("readconfig", "only options on the command line itself can be rebuilt; write the file's contents as such"),
	KEEP("rotate"), KEEP("rtc"), FIX("runas", fix_runas),
	FIX("run-with", fix_run_with),
	DROP_FLAG("S"), FIX_FLAG("s", cmdline_fix_s), FIX("sandbox", cmdline_fix_sandbox), KEEP("sd"), KEEP("seed"),
	FIX("serial", cmdline_fix_port),
	FIX("set", cmdline_fix_set), KEEP_FLAG("singlestep"), KEEP("smbios"), KEEP("smp"),
	REFUSE_FLAG("snapshot", "what the VM wrote is in a temporary file that is deleted already; it cannot be restored"),
	KEEP("spice"), OPTS("tpmdev"), KEEP("trace"), KEEP_FLAG("usb"), KEEP("usbdevice"), KEEP("uuid"), KEEP("vga"),
	OPTS("virtfs"), OPTS("vnc"),
	KEEP("watchdog-action"), KEEP_FLAG("win2k-hack"),
	REFUSE_FLAG("xen-attach", "VMs under Xen are not supported"),
	REFUSE("xen-domid", "VMs under Xen are not supported"),
};

const struct cmdline_rule *cmdline_rule(const char *name)
{
	if (!strcmp(name, "M"))
		name = "machine";
	if (!*name)
		name = "hda";
	for (size_t i = 0; i < ARRAY_SIZE(rules); i++)
		if (!strcmp(rules[i].name, name))
			return &rules[i];
	return NULL;
}

int cmdline_apply(struct cmdline *c, struct cmdline_option *opt)
{
	const struct cmdline_rule *rule = opt->rule;
	int err;

	if (rule->refuse)
		return cmdline_refuse(opt, rule->refuse);
	opt->drop = rule->drop;
	if (opt->drop)
		return opt->ours ? cmdline_invalid(opt, "criu-vm itself sets this, leave it out") : 0;
	err = rule->fix ? rule->fix(c, opt) : 0;
	if (err || opt->drop || opt->is_ram || opt->has_fds || !opt->value || !strcmp(rule->name, "append"))
		return err;
	return refuse_fds(opt);
}
