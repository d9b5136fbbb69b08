// SPDX-License-Identifier: GPL-2.0-only
// Who connects over the loopback device: nothing but this keeps a user of this host from having a VM run as root.
#include <arpa/inet.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "criu-vm/server.h"
#include "util/cleanup.h"

#define ESTABLISHED 1
#define ADDRESS_TEXT 48

static bool is_loopback(const struct sockaddr_storage *a)
{
	const struct sockaddr_in6 *six = (const struct sockaddr_in6 *)a;

	if (a->ss_family == AF_INET)
		return (ntohl(((const struct sockaddr_in *)a)->sin_addr.s_addr) >> 24) == 127;
	if (IN6_IS_ADDR_V4MAPPED(&six->sin6_addr))
		return six->sin6_addr.s6_addr[12] == 127;
	return IN6_IS_ADDR_LOOPBACK(&six->sin6_addr);
}

// As /proc/net/tcp and tcp6 print it: words of the address as this machine reads them, then the port.
static void format(const struct sockaddr_storage *a, char text[ADDRESS_TEXT])
{
	const struct sockaddr_in *four = (const struct sockaddr_in *)a;
	const struct sockaddr_in6 *six = (const struct sockaddr_in6 *)a;
	uint32_t w[4];

	if (a->ss_family == AF_INET) {
		snprintf(text, ADDRESS_TEXT, "%08X:%04X", four->sin_addr.s_addr, ntohs(four->sin_port));
		return;
	}
	memcpy(w, &six->sin6_addr, sizeof w);
	snprintf(text, ADDRESS_TEXT, "%08X%08X%08X%08X:%04X", w[0], w[1], w[2], w[3], ntohs(six->sin6_port));
}

static bool find_owner(const char *file, const char *local, const char *remote, uid_t *uid)
{
	_cleanup_fclose_ FILE *f = fopen(file, "re");
	char line[512], l[ADDRESS_TEXT], r[ADDRESS_TEXT];
	unsigned long inode;
	unsigned state, owner;

	while (f && fgets(line, sizeof line, f)) {
		// One that its process has closed has no inode, and says that it is root's.
		if (sscanf(line, " %*u: %47s %47s %x %*s %*s %*s %u %*u %lu", l, r, &state, &owner, &inode) == 5 && !strcmp(l, local) &&
		    !strcmp(r, remote) && state == ESTABLISHED && inode) {
			*uid = owner;
			return true;
		}
	}
	return false;
}

static bool is_trusted(int fd, bool from_elsewhere)
{
	struct sockaddr_storage ours, theirs;
	socklen_t len = sizeof ours, their_len = sizeof theirs;
	char local[ADDRESS_TEXT], remote[ADDRESS_TEXT];
	uid_t uid;

	if (getsockname(fd, (struct sockaddr *)&ours, &len) < 0 || getpeername(fd, (struct sockaddr *)&theirs, &their_len) < 0)
		return false;
	if (!is_loopback(&theirs))
		return from_elsewhere;
	format(&theirs, local);
	format(&ours, remote);
	return find_owner(theirs.ss_family == AF_INET ? "/proc/self/net/tcp" : "/proc/self/net/tcp6", local, remote, &uid) &&
	       (!uid || uid == geteuid());
}

bool server_peer_is_trusted(int fd)
{
	return is_trusted(fd, true);
}

bool server_peer_is_ours(int fd)
{
	return is_trusted(fd, false);
}
