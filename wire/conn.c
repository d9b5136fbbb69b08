// SPDX-License-Identifier: GPL-2.0-only
#include "wire/conn_int.h"

#include <errno.h>
#include <limits.h>
#include <linux/pkt_sched.h>
#include <netinet/in.h>
#include <netinet/ip.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "util/clock.h"
#include "util/size.h"

#define GLANCE_MS 100 // how often who waits looks whether it was interrupted: another thread may have got the signal
#define MAX_IOV 1024  // of the kernel

int wire_conn_new(int fd, char *peer, struct wire_conn **out)
{
	struct wire_conn *c = peer ? calloc(1, sizeof *c) : NULL;
	int on = 1, idle_s = 5, every_s = 3;

	if (!c) {
		free(peer);
		close(fd);
		return -ENOMEM;
	}
	c->fd = fd;
	c->peer = peer;
	pthread_mutex_init(&c->tls_lock, NULL);
	pthread_mutex_init(&c->message_lock, NULL);
	c->heard_ns = clock_now_ns();
	// Each makes a line better, and none is needed: our own time-outs hold without.
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
	setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
	setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof idle_s);
	setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &every_s, sizeof every_s);
	wire_set_timeout(c, WIRE_LOST_MS);
	*out = c;
	return 0;
}

int wire_fd(const struct wire_conn *c)
{
	return c->fd;
}

const char *wire_peer(const struct wire_conn *c)
{
	return c->peer;
}

void wire_set_timeout(struct wire_conn *c, unsigned ms)
{
	c->timeout_ms = ms;
	setsockopt(c->fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &ms, sizeof ms);
}

void wire_set_urgent(struct wire_conn *c)
{
	int low_latency = IPTOS_DSCP_AF21, interactive = TC_PRIO_INTERACTIVE;

	setsockopt(c->fd, IPPROTO_IP, IP_TOS, &low_latency, sizeof low_latency);
	setsockopt(c->fd, IPPROTO_IPV6, IPV6_TCLASS, &low_latency, sizeof low_latency);
	setsockopt(c->fd, SOL_SOCKET, SO_PRIORITY, &interactive, sizeof interactive); // IP_TOS has set another one
}

void wire_set_deadline(struct wire_conn *c, uint64_t ns)
{
	c->deadline_ns = ns;
}

unsigned wire_lost_in(const struct wire_conn *c)
{
	uint64_t now = clock_now_ns(), end = c->heard_ns + c->timeout_ms * NSEC_PER_MSEC;

	return end > now ? (unsigned)DIV_ROUND_UP(end - now, NSEC_PER_MSEC) : 0;
}

void wire_lock(struct wire_conn *c)
{
	pthread_mutex_lock(&c->message_lock);
}

void wire_unlock(struct wire_conn *c)
{
	pthread_mutex_unlock(&c->message_lock);
}

void wire_set_interrupted(struct wire_conn *c, bool (*interrupted)(void))
{
	c->interrupted = interrupted;
}

uint64_t wire_bytes_sent(const struct wire_conn *c)
{
	return c->sent;
}

uint64_t wire_bytes_received(const struct wire_conn *c)
{
	return c->received;
}

int wire_wait(int fd, short events, uint64_t end_ns, bool (*interrupted)(void))
{
	for (;;) {
		struct pollfd p = { .fd = fd, .events = events };
		uint64_t now = clock_now_ns(), most = interrupted ? GLANCE_MS : INT_MAX, ms = 0;
		int n;

		if (interrupted && interrupted())
			return -EINTR;
		if (now < end_ns)
			ms = (end_ns - now - 1) / NSEC_PER_MSEC + 1;
		n = poll(&p, 1, (int)(ms < most ? ms : most));
		if (n > 0)
			return 1;
		if (n < 0 && errno != EINTR)
			return -errno;
		if (!ms)
			return 0;
	}
}

// Waits until a transfer can go on.
static int wait_for(const struct wire_conn *c, short events)
{
	uint64_t end = clock_now_ns() + c->timeout_ms * NSEC_PER_MSEC;
	int r;

	if (events & POLLIN && c->deadline_ns && c->deadline_ns < end)
		end = c->deadline_ns;
	r = wire_wait(c->fd, events, end, c->interrupted);
	return r > 0 ? 0 : r ? r : -ETIMEDOUT;
}

static ssize_t receive_some(struct wire_conn *c, void *buf, size_t len)
{
	ssize_t n;

	if (c->session)
		return wire_tls_receive(c, buf, len);
	n = recv(c->fd, buf, len, MSG_DONTWAIT);
	return n >= 0 ? n : errno == EINTR ? -EAGAIN : -errno;
}

// nr 0: 0 once all is on its way.
static ssize_t send_some(struct wire_conn *c, struct iovec *iov, unsigned nr)
{
	struct msghdr m = { .msg_iov = iov, .msg_iovlen = nr < MAX_IOV ? nr : MAX_IOV };
	ssize_t n;

	if (c->session)
		return wire_tls_send(c, iov, nr);
	if (!nr)
		return 0;
	n = sendmsg(c->fd, &m, MSG_DONTWAIT | MSG_NOSIGNAL);
	return n >= 0 ? n : errno == EINTR ? -EAGAIN : errno == EPIPE ? -ECONNRESET : -errno;
}

int wire_read(struct wire_conn *c, void *buf, size_t len)
{
	uint8_t *p = buf;

	if (len && c->has_ahead && !c->read_error) {
		*p++ = c->ahead;
		len--;
		c->has_ahead = false;
		c->received++;
	}
	while (len && !c->read_error) {
		ssize_t n = receive_some(c, p, len);

		if (n > 0) {
			p += n;
			len -= (size_t)n;
			c->received += (uint64_t)n;
			c->heard_ns = clock_now_ns();
		} else {
			c->read_error = n == -EAGAIN ? wait_for(c, POLLIN) : n ? (int)n : -ECONNRESET;
		}
	}
	return c->read_error;
}

int wire_write(struct wire_conn *c, const void *buf, size_t len)
{
	struct iovec iov = { .iov_base = (void *)buf, .iov_len = len };

	return wire_writev(c, &iov, 1);
}

int wire_writev(struct wire_conn *c, struct iovec *iov, unsigned nr)
{
	while (!c->write_error) {
		ssize_t n;

		for (; nr && !iov->iov_len; nr--)
			iov++;
		n = send_some(c, iov, nr);
		if (n < 0) {
			c->write_error = n == -EAGAIN ? wait_for(c, POLLOUT) : (int)n;
			continue;
		}
		if (!nr)
			break;
		c->sent += (uint64_t)n;
		for (size_t left = (size_t)n, part; left && nr; left -= part) {
			part = left < iov->iov_len ? left : iov->iov_len;
			iov->iov_base = (char *)iov->iov_base + part;
			iov->iov_len -= part;
			if (!iov->iov_len && nr--)
				iov++;
		}
	}
	return c->write_error;
}

int wire_poll(struct wire_conn *c, int timeout_ms)
{
	uint64_t end = timeout_ms < 0 ? UINT64_MAX : clock_now_ns() + (uint64_t)timeout_ms * NSEC_PER_MSEC;

	if (c->read_error || c->has_ahead)
		return 1;
	for (;;) {
		// Of TLS, a readable socket may hold less than a record, or nothing for us, and the session may hold what no poll() sees.
		ssize_t n = c->session ? wire_tls_receive(c, &c->ahead, 1) : -EAGAIN;
		int r;

		c->has_ahead = n > 0;
		if (n <= 0 && n != -EAGAIN)
			c->read_error = n ? (int)n : -ECONNRESET;
		if (n != -EAGAIN)
			return 1;
		r = wire_wait(c->fd, POLLIN, end, c->interrupted);
		if (r <= 0 || !c->session)
			return r;
	}
}

void wire_shutdown(struct wire_conn *c)
{
	shutdown(c->fd, SHUT_RDWR);
}

void wire_finish(struct wire_conn *c, unsigned ms)
{
	uint64_t end = clock_now_ns() + ms * NSEC_PER_MSEC;
	char junk[4 * KiB];

	shutdown(c->fd, SHUT_WR);
	while (clock_now_ns() < end && wire_wait(c->fd, POLLIN, end, NULL) > 0) {
		ssize_t n = recv(c->fd, junk, sizeof junk, MSG_DONTWAIT);

		if (!n || (n < 0 && errno != EAGAIN && errno != EINTR))
			break;
	}
}

void wire_close(struct wire_conn *c)
{
	if (!c)
		return;
	wire_tls_end(c);
	pthread_mutex_destroy(&c->message_lock);
	pthread_mutex_destroy(&c->tls_lock);
	close(c->fd);
	free(c->peer);
	free(c);
}
