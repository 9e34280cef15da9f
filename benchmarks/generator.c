/* The load generator: one process, one epoll loop, no allocation per operation.
 *
 * It must be much cheaper than any server it drives, so that what is measured is the server:
 *   - an operation is one snprintf, one XOR over some 450 bytes and its share of one send();
 *   - of an answer only the WebSocket header and the first 12 bytes are looked at, which is enough to tell an
 *     ack from a broadcast; errors, and what an opener reads, are looked at whole;
 *   - answers are counted, not kept. Acks of one writer come in order, so the n-th ack belongs to the n-th op.
 *
 * It reads the server's CPU time itself, at the first and the last moment of the measured window, so that rate and
 * CPU are of the same window. Any error, conflict or closed connection ends the run with exit code 1: a
 * benchmark that has to skip answers measures nothing.
 *
 * benchmarks/generator.py compiles and starts it and documents the fields of the one JSON line it prints.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { READ_BYTES = 256 * 1024, WINDOW_MAX = 64, SNIFF_BYTES = 12, LATENCIES_MAX = 1 << 22, EVENTS_MAX = 512 };
static const uint64_t SECOND_NS = 1000000000ull;
static const uint64_t STALL_NS = 20 * 1000000000ull; /* No ack for so long: the run failed. */

enum wire { TELLBACK, ECHO, SOCKETIO, SHAREDB };
enum role { WRITER, SUBSCRIBER, OPENER };

struct conn {
    int fd, chat;
    enum role role;
    bool upgraded, welcomed, opened;
    uint64_t op, acked;             /* Last op sent; number of acks seen. */
    uint64_t skip;                  /* Payload bytes of the current frame still to be passed over. */
    uint8_t *part;                  /* Start of a frame that was not complete enough to be told apart. */
    size_t have, cap;
    uint8_t *out;                   /* What the socket did not take yet. */
    size_t out_len;
    uint64_t sent_ns[WINDOW_MAX];   /* By op % WINDOW_MAX. */
    uint64_t opened_at_ns;          /* Openers: when `open` was sent. */
};

static struct {
    const char *host, *path, *prefix, *op, *ids_file;
    int port, chats, subscribers, window, message_bytes, server_pid, idle, warm, create, opens, senders;
    double seconds, warmup, rate;
    uint64_t existing;              /* Messages a ShareDB document has from the start. */
    uint64_t ops, warmup_ops;       /* When set, the window is so many acks, not seconds. */
    enum wire wire;
    const char *open_chats[8];
    int open_chat_count;
} opt = {.host = "127.0.0.1", .path = "/ws", .prefix = "character:Bench/", .op = "append", .chats = 100, .subscribers = 2,
         .window = 1, .message_bytes = 300, .create = 1, .seconds = 2, .warmup = 0.5, .senders = -1};

static struct {
    uint64_t acks, deliveries, bytes_in, bytes_out, others, behind, last_ack_ns, gap_max_ns, late;
    uint32_t *latency_ns;
    size_t latencies;
    uint64_t opens_done, open_ns_max, open_ns_sum, open_bytes;
} seen;

static int epoll_fd;
static struct conn *conns;
static int conn_count;
static char *message;               /* The message as JSON text. */
static char **patch_ids;            /* Per chat: the message a patch changes. */
static uint8_t *scratch_in, *scratch_out;
static size_t scratch_in_cap, scratch_out_len;
static const uint8_t MASK[4] = {0x37, 0xfa, 0x21, 0x3d};
enum { SCRATCH_OUT_BYTES = 1 << 20, FRAME_HEADROOM = 4096 };

static uint64_t clock_ns(clockid_t id) {
    struct timespec t;
    clock_gettime(id, &t);
    return (uint64_t)t.tv_sec * SECOND_NS + (uint64_t)t.tv_nsec;
}
static uint64_t now_ns(void) { return clock_ns(CLOCK_MONOTONIC); }

__attribute__((noreturn, format(printf, 1, 2))) static void fail(const char *format, ...) {
    va_list args;
    va_start(args, format);
    fprintf(stderr, "generator: ");
    vfprintf(stderr, format, args);
    fprintf(stderr, "\n");
    exit(1);
}

/* ---- /proc: CPU time of the server, and of everything on the machine ---- */

/* Sum over the threads of a process, in ns. schedstat is exact; stat counts ticks of 10 ms and is the fallback. */
static uint64_t process_cpu_ns(int pid) {
    char path[64], line[1024];
    uint64_t total = 0;
    bool exact = false;
    if (!pid) return 0;
    snprintf(path, sizeof path, "/proc/%d/task", pid);
    DIR *tasks = opendir(path);
    if (!tasks) fail("process %d is gone", pid);
    for (struct dirent *task; (task = readdir(tasks));) {
        if (task->d_name[0] == '.') continue;
        char file[400];
        snprintf(file, sizeof file, "/proc/%d/task/%s/schedstat", pid, task->d_name);
        FILE *f = fopen(file, "r");
        unsigned long long ran;
        if (!f) continue;
        if (fscanf(f, "%llu", &ran) == 1) total += ran, exact = true;
        fclose(f);
    }
    closedir(tasks);
    if (exact) return total;
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    FILE *f = fopen(path, "r");
    if (!f || !fgets(line, sizeof line, f)) fail("process %d is gone", pid);
    fclose(f);
    unsigned long long user = 0, kernel = 0;
    sscanf(strrchr(line, ')') + 2, "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %llu %llu", &user, &kernel);
    return (user + kernel) * (SECOND_NS / (uint64_t)sysconf(_SC_CLK_TCK));
}

static uint64_t machine_busy_ns(void) {
    unsigned long long user, nice, kernel, idle, iowait, irq, softirq, steal;
    FILE *f = fopen("/proc/stat", "r");
    int fields = f ? fscanf(f, "cpu %llu %llu %llu %llu %llu %llu %llu %llu", &user, &nice, &kernel, &idle, &iowait, &irq,
                            &softirq, &steal) : 0;
    if (f) fclose(f);
    if (fields != 8) return 0;
    return (user + nice + kernel + irq + softirq + steal) * (SECOND_NS / (uint64_t)sysconf(_SC_CLK_TCK));
}

/* ---- frames out ---- */

/* Append one masked text frame to scratch_out. */
static void put_frame(uint8_t opcode, const char *text, size_t length) {
    uint8_t *p = scratch_out + scratch_out_len;
    if (scratch_out_len + length + 16 > SCRATCH_OUT_BYTES) fail("the output buffer is too small");
    *p++ = (uint8_t)(0x80 | opcode);
    if (length < 126) {
        *p++ = (uint8_t)(0x80 | length);
    } else if (length < 65536) {
        *p++ = 0x80 | 126;
        *p++ = (uint8_t)(length >> 8);
        *p++ = (uint8_t)length;
    } else {
        *p++ = 0x80 | 127;
        for (int shift = 56; shift >= 0; shift -= 8) *p++ = (uint8_t)((uint64_t)length >> shift);
    }
    memcpy(p, MASK, 4);
    p += 4;
    for (size_t i = 0; i < length; i++) p[i] = (uint8_t)text[i] ^ MASK[i & 3];
    scratch_out_len = (size_t)(p + length - scratch_out);
}

static void want_writable(struct conn *c, bool yes) {
    struct epoll_event e = {.events = EPOLLIN | (yes ? EPOLLOUT : 0), .data.ptr = c};
    epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &e);
}

/* Send scratch_out; keep what the socket does not take. */
static void flush_to(struct conn *c) {
    size_t done = 0;
    seen.bytes_out += scratch_out_len;
    if (!c->out_len) {
        ssize_t n = send(c->fd, scratch_out, scratch_out_len, MSG_NOSIGNAL);
        if (n < 0 && errno != EAGAIN && errno != EWOULDBLOCK) fail("send: %s", strerror(errno));
        done = n > 0 ? (size_t)n : 0;
    }
    if (done < scratch_out_len) {
        size_t rest = scratch_out_len - done;
        c->out = realloc(c->out, c->out_len + rest);
        memcpy(c->out + c->out_len, scratch_out + done, rest);
        c->out_len += rest;
        want_writable(c, true);
    }
    scratch_out_len = 0;
}

static void resume_output(struct conn *c) {
    ssize_t n = send(c->fd, c->out, c->out_len, MSG_NOSIGNAL);
    if (n < 0) {
        if (errno == EAGAIN || errno == EWOULDBLOCK) return;
        fail("send: %s", strerror(errno));
    }
    c->out_len -= (size_t)n;
    memmove(c->out, c->out + n, c->out_len);
    if (!c->out_len) want_writable(c, false);
}

static void put_text(const char *format, ...) {
    static char text[128 * 1024];
    va_list args;
    va_start(args, format);
    int length = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (length >= (int)sizeof text) fail("a frame is too long");
    put_frame(1, text, (size_t)length);
}

static const char *chat_name(const struct conn *c) {
    static char name[256];
    if (c->role == OPENER) return opt.open_chats[c->chat];
    snprintf(name, sizeof name, "%s%d", opt.prefix, c->chat);
    return name;
}

static void put_op(struct conn *c, uint64_t started_ns) {
    unsigned long long op = ++c->op;
    c->sent_ns[op % WINDOW_MAX] = started_ns;
    if (opt.wire == SOCKETIO) {
        put_text("42%llu[\"append\",{\"chat\":\"%s\",\"op\":%llu,\"messages\":[%s]}]", op, chat_name(c), op, message);
    } else if (opt.wire == SHAREDB) {
        put_text("{\"a\":\"op\",\"c\":\"chats\",\"d\":\"%d\",\"v\":%llu,\"seq\":%llu,\"x\":{},\"op\":[{\"p\":[\"messages\",%llu],"
                 "\"li\":%s}]}", c->chat, op, op, (unsigned long long)opt.existing + op - 1, message);
    } else if (op == 1 || opt.op[0] == 'a') {
        /* The first op of a session is always an append, so that patches can name the op before them as base. */
        put_text("{\"type\":\"append\",\"id\":%llu,\"chat\":\"%s\",\"op\":%llu,\"base\":\"*\",\"messages\":[%s]}", op + 1,
                 chat_name(c), op, message);
    } else {
        put_text("{\"type\":\"patch\",\"id\":%llu,\"chat\":\"%s\",\"op\":%llu,\"base\":{\"op\":%llu},\"message\":\"%s\","
                 "\"patch\":[{\"op\":\"replace\",\"path\":\"/mes\",\"value\":\"The %llu. wording of this message, neither "
                 "longer nor shorter than what a person changes in a reply before going on with the story.\"}]}",
                 op + 1, chat_name(c), op, op - 1, patch_ids[c->chat], op);
    }
}

static void send_ops(struct conn *c, int count, uint64_t started_ns) {
    if (!count) return;
    while (count--) put_op(c, started_ns);
    flush_to(c);
}

/* ---- frames in ---- */

static void start_opening(struct conn *c) {
    c->opened_at_ns = now_ns();
    put_text("{\"type\":\"open\",\"id\":1,\"chat\":\"%s\",\"create\":false,\"since\":null}", chat_name(c));
    flush_to(c);
}

static void opening_done(struct conn *c) {
    uint64_t took = now_ns() - c->opened_at_ns;
    c->opened = true;
    seen.opens_done++;
    seen.open_ns_sum += took;
    if (took > seen.open_ns_max) seen.open_ns_max = took;
    if (c + 1 < conns + conn_count && c[1].role == OPENER) start_opening(c + 1);
}

/* An opener's frame, whole: it is done with `opened`, or with the last part of the snapshot. */
static void opener_frame(struct conn *c, const char *text, size_t length) {
    seen.open_bytes += length;
    if (text[9] == 'o') {
        if (!memmem(text, length, "\"parts\":", 8)) opening_done(c);
    } else if (!memcmp(text + 9, "sna", 3)) {
        const char *part = memmem(text, length, "\"part\":", 7), *of = memmem(text, length, "\"of\":", 5);
        if (part && of && atoi(part + 7) == atoi(of + 5)) opening_done(c);
    }
}

static void ack_seen(struct conn *c, uint64_t now) {
    uint64_t took = now - c->sent_ns[++c->acked % WINDOW_MAX];
    seen.acks++;
    if (seen.latencies < LATENCIES_MAX) seen.latency_ns[seen.latencies++] = took > UINT32_MAX ? UINT32_MAX : (uint32_t)took;
    if (seen.last_ack_ns && now - seen.last_ack_ns > seen.gap_max_ns) seen.gap_max_ns = now - seen.last_ack_ns;
    seen.last_ack_ns = now;
}

static void socketio_frame(struct conn *c, const char *text, size_t length, uint64_t now) {
    if (length && text[0] == '0') {
        put_text("40");
        flush_to(c);
    } else if (length > 1 && text[0] == '4' && text[1] == '0') {
        c->welcomed = true;
    } else if (length > 1 && text[0] == '4' && text[1] == '3') {
        if (c->opened) ack_seen(c, now); else c->opened = true;
    } else if (length > 1 && text[0] == '4' && text[1] == '2') {
        seen.deliveries++;
    } else if (length && text[0] == '2') {
        put_text("3");
        flush_to(c);
    } else {
        fail("the server said %.*s", (int)length, text);
    }
}

/* ShareDB's answers do not begin with their type; but once a writer joined it gets nothing but acks of its own ops. */
static void sharedb_frame(struct conn *c, const char *text, size_t length, uint64_t now) {
    if (c->opened) {
        if (c->role != WRITER) seen.deliveries++;
        else if (memmem(text, length, "\"error\"", 7)) fail("the server said %.*s", (int)length, text);
        else ack_seen(c, now);
    } else if (memmem(text, length, "\"a\":\"hs\"", 8)) {
        c->welcomed = true;
    } else if (memmem(text, length, "\"a\":\"s\"", 7)) {
        c->opened = true;
    }
}

/* `text` holds min(length, SNIFF_BYTES) bytes at least; the whole frame for errors and openers. */
static void text_frame(struct conn *c, const char *text, size_t length, uint64_t now) {
    if (opt.wire == ECHO) return ack_seen(c, now);
    if (opt.wire == SOCKETIO) return socketio_frame(c, text, length, now);
    if (opt.wire == SHAREDB) return sharedb_frame(c, text, length, now);
    if (length < SNIFF_BYTES || memcmp(text, "{\"type\":\"", 9)) fail("a frame does not begin with its type: %.12s", text);
    switch (text[9]) {
    case 'a': ack_seen(c, now); break;
    case 'i': seen.deliveries++; break;
    case 'w': c->welcomed = true; break;
    case 'e': case 'c': case 'g': case 'r': fail("the server said %.*s", (int)(length > 600 ? 600 : length), text);
    case 'b': seen.behind++; break;
    default:
        if (c->role == OPENER) opener_frame(c, text, length);
        else if (text[9] == 'o') c->opened = true;
        else seen.others++;
    }
}

static bool wanted_whole(const struct conn *c, const uint8_t *text, uint64_t length) {
    if (c->role == OPENER || opt.wire == SOCKETIO) return true;
    if (opt.wire == SHAREDB) return !c->opened || c->role == WRITER;
    return opt.wire == TELLBACK && length >= SNIFF_BYTES && (text[9] == 'e' || text[9] == 'c' || text[9] == 'g' || text[9] == 'r');
}

/* Take whole frames, or heads of frames, from the buffer; returns how many bytes were used up. */
static size_t parse(struct conn *c, const uint8_t *data, size_t n, uint64_t now) {
    size_t at = 0;
    if (!c->upgraded) {
        const uint8_t *end = memmem(data, n, "\r\n\r\n", 4);
        if (!end) return 0;
        if (n < 12 || memcmp(data + 8, " 101", 4)) fail("the upgrade was refused: %.*s", (int)n, data);
        c->upgraded = true;
        at = (size_t)(end + 4 - data);
    }
    while (at < n) {
        if (c->skip) {
            size_t step = n - at < c->skip ? n - at : (size_t)c->skip;
            c->skip -= step;
            at += step;
            continue;
        }
        const uint8_t *p = data + at;
        size_t left = n - at, head = 2;
        if (left < 2) break;
        uint64_t length = p[1] & 127;
        if (length == 126) {
            head = 4;
            if (left < head) break;
            length = (uint64_t)p[2] << 8 | p[3];
        } else if (length == 127) {
            head = 10;
            if (left < head) break;
            length = 0;
            for (int i = 2; i < 10; i++) length = length << 8 | p[i];
        }
        uint8_t opcode = p[0] & 15;
        size_t sniff = length < SNIFF_BYTES ? (size_t)length : SNIFF_BYTES;
        if (left < head + sniff) break;
        if (opcode != 1 || wanted_whole(c, p + head, length)) sniff = (size_t)length;
        if (left < head + sniff) break;
        if (opcode == 1) text_frame(c, (const char *)p + head, (size_t)length, now);
        else if (opcode == 9) put_frame(10, (const char *)p + head, (size_t)length), flush_to(c);
        else if (opcode == 8) fail("the server closed: code %d, %.*s", length > 1 ? p[head] << 8 | p[head + 1] : 0,
                                   length > 2 ? (int)length - 2 : 0, p + head + 2);
        at += head + sniff;
        c->skip = length - sniff;
    }
    return at;
}

/* One recv and what follows from it. Returns the number of acks it brought. */
static int pump(struct conn *c) {
    if (c->have + READ_BYTES > scratch_in_cap) scratch_in = realloc(scratch_in, scratch_in_cap = 2 * (c->have + READ_BYTES));
    ssize_t n = recv(c->fd, scratch_in + c->have, READ_BYTES, 0);
    if (n == 0) fail("the server closed a connection");
    if (n < 0) {
        if (errno == EAGAIN || errno == EWOULDBLOCK) return 0;
        fail("recv: %s", strerror(errno));
    }
    if (c->have) memcpy(scratch_in, c->part, c->have);
    seen.bytes_in += (uint64_t)n;
    uint64_t acked = c->acked;
    size_t total = c->have + (size_t)n, used = parse(c, scratch_in, total, now_ns());
    c->have = total - used;
    if (c->have > c->cap) c->part = realloc(c->part, c->cap = 2 * c->have);
    if (c->have) memcpy(c->part, scratch_in + used, c->have);
    return (int)(c->acked - acked);
}

/* ---- setting up ---- */

static void random_session(char *out, int length) {
    static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    uint8_t bits[64];
    if (getrandom(bits, sizeof bits, 0) != sizeof bits) fail("no randomness");
    for (int i = 0; i < length; i++) out[i] = letters[bits[i] & 63];
    out[length] = 0;
}

/* Connect, upgrade, say hello and open, waiting for each answer. Blocking, because it is not measured. */
static void join(struct conn *c) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)opt.port)};
    struct timeval patience = {.tv_sec = 30};
    int one = 1;
    char session[32];
    inet_pton(AF_INET, opt.host, &address.sin_addr);
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&address, sizeof address)) fail("connect: %s", strerror(errno));
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(c->fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    int length = snprintf((char *)scratch_out, SCRATCH_OUT_BYTES,
                          "GET %s HTTP/1.1\r\nHost: %s:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: "
                          "dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n%s\r\n", opt.path, opt.host, opt.port,
                          opt.wire == TELLBACK ? "Sec-WebSocket-Protocol: tellback.v1\r\n" : "");
    scratch_out_len = (size_t)length;
    flush_to(c);
    uint64_t deadline = now_ns() + STALL_NS;
#define AWAIT(flag) while (!(flag)) { pump(c); if (now_ns() > deadline) fail("no answer while joining"); }
    AWAIT(c->upgraded);
    if (opt.wire == TELLBACK) {
        random_session(session, 22);
        put_text("{\"type\":\"hello\",\"protocol\":1,\"session\":\"%s\",\"token\":null}", session);
        flush_to(c);
        AWAIT(c->welcomed);
        if (c->role != OPENER) {
            put_text("{\"type\":\"open\",\"id\":1,\"chat\":\"%s\",\"create\":%s,\"since\":null}", chat_name(c),
                     opt.create ? "true" : "false");
            flush_to(c);
            AWAIT(c->opened);
        }
    } else if (opt.wire == SHAREDB) {
        put_text("{\"a\":\"hs\",\"id\":null,\"protocol\":1,\"protocolMinor\":1}");
        flush_to(c);
        AWAIT(c->welcomed);
        put_text("{\"a\":\"s\",\"c\":\"chats\",\"d\":\"%d\"}", c->chat);
        flush_to(c);
        AWAIT(c->opened);
    } else if (opt.wire == SOCKETIO) {
        AWAIT(c->welcomed);
        put_text("420[\"join\",{\"chat\":\"%s\"}]", chat_name(c));
        flush_to(c);
        AWAIT(c->opened);
    }
#undef AWAIT
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, c->fd, &e);
}

/* A message of exactly opt.message_bytes bytes of JSON, with the letters real chats are full of. */
static void make_message(void) {
    static const char head[] = "{\"name\":\"User\",\"is_user\":true,\"send_date\":\"2025-01-01T00:00:00.000Z\",\"mes\":\"", tail[] = "\"}";
    static const char text[] = "She put the lantern down \xe2\x80\x94 slowly, as if the caf\xc3\xa9 were asleep \xe2\x80\x94 and asked "
                               "what the letter had said. Nobody answered, and the rain went on against the shutters as it had all week. ";
    size_t room = (size_t)opt.message_bytes - (sizeof head - 1) - (sizeof tail - 1);
    if ((size_t)opt.message_bytes < sizeof head + sizeof tail) fail("--message-bytes is too small");
    message = malloc((size_t)opt.message_bytes + 1);
    memcpy(message, head, sizeof head - 1);
    char *p = message + sizeof head - 1;
    for (size_t i = 0; i < room; i++) p[i] = text[i % (sizeof text - 1)];
    /* A letter cut at the end would not be UTF-8. */
    for (size_t i = room < 4 ? 0 : room - 4; i < room; i++) if ((uint8_t)p[i] > 127) p[i] = '.';
    memcpy(p + room, tail, sizeof tail);
}

static void read_patch_ids(void) {
    char line[256];
    FILE *f = fopen(opt.ids_file, "r");
    if (!f) fail("cannot read %s", opt.ids_file);
    patch_ids = calloc((size_t)opt.chats, sizeof *patch_ids);
    for (int i = 0; i < opt.chats; i++) {
        if (!fgets(line, sizeof line, f)) fail("%s has fewer lines than there are chats", opt.ids_file);
        line[strcspn(line, "\n")] = 0;
        patch_ids[i] = strdup(line);
    }
    fclose(f);
}

/* Read whatever comes until nothing came for `quiet_ms`. */
static void drain(int quiet_ms) {
    struct epoll_event events[EVENTS_MAX];
    uint64_t deadline = now_ns() + STALL_NS;
    for (int n; (n = epoll_wait(epoll_fd, events, EVENTS_MAX, quiet_ms)) > 0 && now_ns() < deadline;)
        for (int i = 0; i < n; i++) if (events[i].data.ptr) pump(events[i].data.ptr);
}

/* ---- the runs ---- */

/* Hold connections: join `warm`, say "ready", wait for a line, join the rest, say "ready", wait for the end of stdin. */
static void run_idle(void) {
    char line[16];
    for (int i = 0; i < conn_count; i++) {
        conns[i] = (struct conn){.chat = i % opt.chats, .role = SUBSCRIBER};
        join(&conns[i]);
        if (i + 1 == opt.warm || i + 1 == conn_count) {
            drain(300);
            printf("ready %d\n", i + 1);
            fflush(stdout);
            if (!fgets(line, sizeof line, stdin)) return;
        }
    }
}

static uint64_t paced_from_ns, paced_count;

static void arm(int timer_fd) {
    uint64_t at = paced_from_ns + (uint64_t)((double)paced_count * 1e9 / opt.rate);
    struct itimerspec when = {.it_value = {.tv_sec = (time_t)(at / SECOND_NS), .tv_nsec = (long)(at % SECOND_NS)}};
    timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &when, NULL);
}

/* Send what is due. An op counts from the moment it was due, so a server that stalls cannot hide it. */
static void pace(int timer_fd, struct conn **writers, int writer_count) {
    uint64_t expirations;
    if (read(timer_fd, &expirations, sizeof expirations) < 0) return;
    for (uint64_t now = now_ns();;) {
        uint64_t at = paced_from_ns + (uint64_t)((double)paced_count * 1e9 / opt.rate);
        if (at > now) break;
        struct conn *c = writers[paced_count++ % (uint64_t)writer_count];
        if (c->op - c->acked >= WINDOW_MAX - 1) seen.late++;
        else send_ops(c, 1, at);
    }
    arm(timer_fd);
}

static int by_size(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}
static double quantile_us(double q) {
    if (!seen.latencies) return 0;
    size_t i = (size_t)(q * (double)(seen.latencies - 1) + 0.5);
    return seen.latency_ns[i] / 1000.0;
}

static void reset_seen(void) {
    uint32_t *keep = seen.latency_ns;
    memset(&seen, 0, sizeof seen);
    seen.latency_ns = keep;
}

static void run_work(void) {
    struct conn **writers = calloc((size_t)opt.chats, sizeof *writers);
    int writer_count = 0, first_opener = -1;
    for (int i = 0; i < conn_count; i++) {
        int group = opt.subscribers + 1, people = opt.chats * group;
        conns[i] = i < people ? (struct conn){.chat = i / group, .role = i % group ? SUBSCRIBER : WRITER}
                              : (struct conn){.chat = (i - people) % opt.open_chat_count, .role = OPENER};
        join(&conns[i]);
        if (conns[i].role == WRITER && writer_count < opt.senders) writers[writer_count++] = &conns[i];
        if (conns[i].role == OPENER && first_opener < 0) first_opener = i;
    }
    drain(200);
    int timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    struct epoll_event timer_event = {.events = EPOLLIN, .data.ptr = NULL}, events[EVENTS_MAX];
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, timer_fd, &timer_event);
    uint64_t started = now_ns(), window_from = 0, window_to = 0, now = started;
    uint64_t server_cpu = 0, own_cpu = 0, machine_cpu = 0;
    if (opt.rate > 0) paced_from_ns = started, arm(timer_fd);
    else for (int i = 0; i < writer_count; i++) send_ops(writers[i], opt.window, started);
    for (;;) {
        int n = epoll_wait(epoll_fd, events, EVENTS_MAX, 10);
        for (int i = 0; i < n; i++) {
            struct conn *c = events[i].data.ptr;
            if (!c) {
                pace(timer_fd, writers, writer_count);
                continue;
            }
            if (events[i].events & EPOLLOUT) resume_output(c);
            if (!(events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR))) continue;
            int acked = pump(c);
            if (opt.rate <= 0) send_ops(c, acked, now_ns());
        }
        now = now_ns();
        if (!window_from) {
            if (opt.warmup_ops ? seen.acks < opt.warmup_ops : now - started < (uint64_t)(opt.warmup * 1e9)) continue;
            reset_seen();
            server_cpu = process_cpu_ns(opt.server_pid);
            machine_cpu = machine_busy_ns();
            own_cpu = clock_ns(CLOCK_PROCESS_CPUTIME_ID);
            window_from = seen.last_ack_ns = now_ns();
            if (first_opener >= 0) start_opening(&conns[first_opener]);
        } else if (opt.ops ? seen.acks >= opt.ops : now - window_from >= (uint64_t)(opt.seconds * 1e9)) {
            break;
        } else if (now - seen.last_ack_ns > STALL_NS) {
            fail("no ack for %d s", (int)(STALL_NS / SECOND_NS));
        }
    }
    window_to = now_ns();
    own_cpu = clock_ns(CLOCK_PROCESS_CPUTIME_ID) - own_cpu;
    server_cpu = process_cpu_ns(opt.server_pid) - server_cpu;
    machine_cpu = machine_busy_ns() - machine_cpu;
    if (now - seen.last_ack_ns > seen.gap_max_ns) seen.gap_max_ns = now - seen.last_ack_ns;
    qsort(seen.latency_ns, seen.latencies, sizeof *seen.latency_ns, by_size);
    double seconds = (double)(window_to - window_from) / 1e9, ops = seen.acks ? (double)seen.acks : 1;
    double foreign = ((double)machine_cpu - (double)server_cpu - (double)own_cpu) / 1e9 / seconds;
    printf("{\"ops\":%llu,\"seconds\":%.6f,\"rate\":%.1f,\"deliveries\":%llu,\"bytes_in\":%llu,\"bytes_out\":%llu,"
           "\"server_cpu_s\":%.6f,\"cpu_us_per_op\":%.3f,\"generator_busy\":%.4f,\"foreign_cpu\":%.4f,\"p50_us\":%.1f,"
           "\"p90_us\":%.1f,\"p99_us\":%.1f,\"max_us\":%.1f,\"gap_max_us\":%.1f,\"behind\":%llu,\"others\":%llu,\"late\":%llu,"
           "\"opens\":%llu,\"open_bytes\":%llu,\"open_ms_max\":%.2f,\"open_ms_mean\":%.2f,\"message_bytes\":%d}\n",
           (unsigned long long)seen.acks, seconds, ops / seconds, (unsigned long long)seen.deliveries,
           (unsigned long long)seen.bytes_in, (unsigned long long)seen.bytes_out, (double)server_cpu / 1e9,
           (double)server_cpu / 1e3 / ops, (double)own_cpu / 1e9 / seconds, foreign < 0 ? 0 : foreign, quantile_us(0.5),
           quantile_us(0.9), quantile_us(0.99), quantile_us(1), (double)seen.gap_max_ns / 1e3, (unsigned long long)seen.behind,
           (unsigned long long)seen.others, (unsigned long long)seen.late, (unsigned long long)seen.opens_done,
           (unsigned long long)seen.open_bytes,
           (double)seen.open_ns_max / 1e6, seen.opens_done ? (double)seen.open_ns_sum / 1e6 / (double)seen.opens_done : 0.0,
           opt.message_bytes);
}

int main(int argc, char **argv) {
    enum { HOST = 1, PORT, PATH, WIRE, PREFIX, CHATS, SUBSCRIBERS, SENDERS, WINDOW, BYTES, SECONDS, WARMUP, RATE, OPS, WARMUP_OPS, OP, IDS, PID,
           IDLE, WARM, CREATE, OPEN_CHAT, OPENS, EXISTING };
    static const struct option options[] = {
        {"host", 1, 0, HOST}, {"port", 1, 0, PORT}, {"path", 1, 0, PATH}, {"wire", 1, 0, WIRE}, {"chat-prefix", 1, 0, PREFIX},
        {"chats", 1, 0, CHATS}, {"subscribers", 1, 0, SUBSCRIBERS}, {"senders", 1, 0, SENDERS}, {"window", 1, 0, WINDOW},
        {"message-bytes", 1, 0, BYTES}, {"seconds", 1, 0, SECONDS}, {"warmup", 1, 0, WARMUP}, {"rate", 1, 0, RATE},
        {"ops", 1, 0, OPS}, {"warmup-ops", 1, 0, WARMUP_OPS}, {"op", 1, 0, OP}, {"patch-ids", 1, 0, IDS}, {"server-pid", 1, 0, PID}, {"idle", 1, 0, IDLE},
        {"warm", 1, 0, WARM}, {"create", 1, 0, CREATE}, {"open-chat", 1, 0, OPEN_CHAT}, {"opens", 1, 0, OPENS},
        {"existing", 1, 0, EXISTING}, {0}};
    for (int o; (o = getopt_long(argc, argv, "", options, NULL)) != -1;) switch (o) {
        case HOST: opt.host = optarg; break;
        case PORT: opt.port = atoi(optarg); break;
        case PATH: opt.path = optarg; break;
        case WIRE: opt.wire = optarg[0] == 't' ? TELLBACK : optarg[0] == 'e' ? ECHO : optarg[1] == 'h' ? SHAREDB : SOCKETIO; break;
        case PREFIX: opt.prefix = optarg; break;
        case CHATS: opt.chats = atoi(optarg); break;
        case SUBSCRIBERS: opt.subscribers = atoi(optarg); break;
        case SENDERS: opt.senders = atoi(optarg); break;
        case WINDOW: opt.window = atoi(optarg); break;
        case BYTES: opt.message_bytes = atoi(optarg); break;
        case SECONDS: opt.seconds = atof(optarg); break;
        case WARMUP: opt.warmup = atof(optarg); break;
        case RATE: opt.rate = atof(optarg); break;
        case OPS: opt.ops = strtoull(optarg, NULL, 10); break;
        case WARMUP_OPS: opt.warmup_ops = strtoull(optarg, NULL, 10); break;
        case OP: opt.op = optarg; break;
        case IDS: opt.ids_file = optarg; break;
        case PID: opt.server_pid = atoi(optarg); break;
        case IDLE: opt.idle = atoi(optarg); break;
        case WARM: opt.warm = atoi(optarg); break;
        case CREATE: opt.create = atoi(optarg); break;
        case OPEN_CHAT: if (opt.open_chat_count < 8) opt.open_chats[opt.open_chat_count++] = optarg; break;
        case OPENS: opt.opens = atoi(optarg); break;
        case EXISTING: opt.existing = strtoull(optarg, NULL, 10); break;
        default: fail("unknown option");
        }
    if (opt.window < 1 || opt.window >= WINDOW_MAX) fail("--window must be 1 to %d", WINDOW_MAX - 1);
    if (opt.op[0] == 'p' && !opt.ids_file) fail("patches need --patch-ids");
    if (opt.senders < 0) opt.senders = opt.chats;
    make_message();
    if (opt.ids_file) read_patch_ids();
    scratch_out = malloc(SCRATCH_OUT_BYTES);
    scratch_in = malloc(scratch_in_cap = 2 * READ_BYTES);
    seen.latency_ns = malloc(LATENCIES_MAX * sizeof *seen.latency_ns);
    epoll_fd = epoll_create1(0);
    conn_count = opt.idle ? opt.idle : opt.chats * (opt.subscribers + 1) + (opt.open_chat_count ? opt.opens : 0);
    conns = calloc((size_t)conn_count, sizeof *conns);
    if (opt.idle) run_idle(); else run_work();
    return 0;
}
