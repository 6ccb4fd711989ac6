/* The least that receiving a model over HTTP can cost: ranged GETs into memory that is faulted in and reused.
 *
 *     cc -O2 -pthread -o c_floor c_floor.c -lssl -lcrypto
 *     c_floor [--tls CA.pem] [--threads 4] [--chunk 8388608] [--read-ahead BYTES] HOST PORT PATH:SIZE...
 *
 * Each thread keeps one connection and one buffer of a chunk's size. It takes the next chunk of any file, asks for it,
 * and receives the answer's body in one place: `recv` with MSG_WAITALL, or SSL_read into the rest of the buffer. With
 * --tls the certificate and the host's name are verified. With --read-ahead OpenSSL reads that many bytes a call
 * instead of one record's header and then its body. Every answer must be a 206 of the length asked for; nothing is
 * done with the bytes. Prints one line of JSON; exits 1 on any fault.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define HEAD_BYTES 16384

struct file {
    const char *path;
    size_t size;
    size_t chunks;
};

static struct file *files;
static size_t file_count, chunk_count, chunk_bytes = 8u << 20;
static atomic_size_t next_chunk, received;
static const char *host, *port;
static SSL_CTX *tls;
static size_t read_ahead;

struct connection {
    int descriptor;
    SSL *ssl;
};

static void fail(const char *what) {
    fprintf(stderr, "c_floor: %s\n", what);
    if (tls) ERR_print_errors_fp(stderr);
    exit(1);
}

static void open_connection(struct connection *c) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(port))};
    int one = 1;
    if (inet_pton(AF_INET, host, &address.sin_addr) != 1) fail("HOST must be an IPv4 address");
    c->descriptor = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->descriptor < 0) fail("socket");
    setsockopt(c->descriptor, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(c->descriptor, (struct sockaddr *)&address, sizeof address)) fail("connect");
    c->ssl = NULL;
    if (!tls) return;
    c->ssl = SSL_new(tls);
    if (!c->ssl || !SSL_set_fd(c->ssl, c->descriptor)) fail("SSL_new");
    X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(c->ssl), host);
    if (SSL_connect(c->ssl) != 1 || SSL_get_verify_result(c->ssl) != X509_V_OK) fail("TLS handshake");
}

static void close_connection(struct connection *c) {
    if (c->ssl) SSL_free(c->ssl);
    close(c->descriptor);
    c->ssl = NULL;
    c->descriptor = -1;
}

static void send_all(struct connection *c, const char *text, size_t length) {
    while (length) {
        ssize_t n = c->ssl ? SSL_write(c->ssl, text, (int)length) : send(c->descriptor, text, length, MSG_NOSIGNAL);
        if (n <= 0) fail("send");
        text += n;
        length -= (size_t)n;
    }
}

/* Some bytes, at most `length`; waits for all of them on a plain socket when `all` is set. */
static size_t receive(struct connection *c, char *into, size_t length, int all) {
    ssize_t n;
    if (c->ssl)
        n = SSL_read(c->ssl, into, length > (1u << 30) ? 1 << 30 : (int)length);
    else
        n = recv(c->descriptor, into, length, all ? MSG_WAITALL : 0);
    if (n <= 0) fail("the connection was closed or reset");
    return (size_t)n;
}

/* One ranged GET; returns whether the connection may be used again. */
static int get(struct connection *c, const struct file *file, size_t start, size_t stop, char *into) {
    char head[HEAD_BYTES + 1], request[4096];
    size_t have = 0, wanted = stop - start, body;
    char *end = NULL, *length;
    int n = snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: %s:%s\r\nRange: bytes=%zu-%zu\r\n\r\n",
                     file->path, host, port, start, stop - 1);
    if (n < 0 || (size_t)n >= sizeof request) fail("PATH is too long");
    send_all(c, request, (size_t)n);
    while (!end) {
        if (have == HEAD_BYTES) fail("an answer's headers are too long");
        have += receive(c, head + have, HEAD_BYTES - have, 0);
        head[have] = 0;
        end = strstr(head, "\r\n\r\n");
    }
    *end = 0;
    if (strncmp(head, "HTTP/1.1 206", 12)) fail(head);
    length = strcasestr(head, "\r\ncontent-length:");
    if (!length || strtoull(length + 17, NULL, 10) != wanted) fail("Content-Length is not what was asked for");
    body = have - (size_t)(end + 4 - head);
    if (body > wanted) fail("more bytes than were asked for");
    memcpy(into, end + 4, body);
    while (body < wanted) body += receive(c, into + body, wanted - body, 1);
    return strcasestr(head, "\r\nconnection: close") == NULL;
}

static void *work(void *unused) {
    struct connection c = {.descriptor = -1};
    char *buffer = mmap(NULL, chunk_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    size_t chunk;
    (void)unused;
    if (buffer == MAP_FAILED) fail("mmap");
    while ((chunk = atomic_fetch_add(&next_chunk, 1)) < chunk_count) {
        struct file *file = files;
        size_t start, stop;
        while (chunk >= file->chunks) chunk -= file++->chunks;
        start = chunk * chunk_bytes;
        stop = start + chunk_bytes < file->size ? start + chunk_bytes : file->size;
        if (c.descriptor < 0) open_connection(&c);
        if (!get(&c, file, start, stop, buffer)) close_connection(&c);
        atomic_fetch_add(&received, stop - start);
    }
    if (c.descriptor >= 0) close_connection(&c);
    return NULL;
}

static double seconds(struct timeval value) { return (double)value.tv_sec + (double)value.tv_usec / 1e6; }

int main(int argc, char **argv) {
    const char *authority = NULL;
    size_t threads = 4, total = 0;
    struct timespec began, ended;
    struct rusage usage;
    pthread_t *ids;
    int at = 1;
    for (; at + 1 < argc && !strncmp(argv[at], "--", 2); at += 2) {
        size_t number = strtoull(argv[at + 1], NULL, 10);
        if (!strcmp(argv[at], "--tls")) authority = argv[at + 1];
        else if (!strcmp(argv[at], "--threads") && number) threads = number;
        else if (!strcmp(argv[at], "--chunk") && number) chunk_bytes = number;
        else if (!strcmp(argv[at], "--read-ahead")) read_ahead = number;
        else fail("unknown option");
    }
    if (argc - at < 3) fail("HOST PORT PATH:SIZE... are needed");
    host = argv[at];
    port = argv[at + 1];
    file_count = (size_t)(argc - at - 2);
    files = calloc(file_count, sizeof *files);
    ids = calloc(threads, sizeof *ids);
    if (!files || !ids) fail("no memory");
    for (size_t i = 0; i < file_count; i++) {
        char *text = argv[at + 2 + (int)i], *colon = strrchr(text, ':');
        if (!colon) fail("PATH:SIZE is needed");
        *colon = 0;
        files[i] = (struct file){.path = text, .size = strtoull(colon + 1, NULL, 10)};
        files[i].chunks = (files[i].size + chunk_bytes - 1) / chunk_bytes;
        chunk_count += files[i].chunks;
        total += files[i].size;
    }
    signal(SIGPIPE, SIG_IGN);
    clock_gettime(CLOCK_MONOTONIC, &began);
    if (authority) {
        tls = SSL_CTX_new(TLS_client_method());
        if (!tls || SSL_CTX_load_verify_locations(tls, authority, NULL) != 1) fail("cannot read the authority");
        SSL_CTX_set_verify(tls, SSL_VERIFY_PEER, NULL);
        if (read_ahead) {
            SSL_CTX_set_read_ahead(tls, 1);
            SSL_CTX_set_default_read_buffer_len(tls, read_ahead);
        }
    }
    for (size_t i = 0; i < threads; i++)
        if (pthread_create(&ids[i], NULL, work, NULL)) fail("pthread_create");
    for (size_t i = 0; i < threads; i++) pthread_join(ids[i], NULL);
    clock_gettime(CLOCK_MONOTONIC, &ended);
    if (atomic_load(&received) != total) fail("bytes are missing");
    getrusage(RUSAGE_SELF, &usage);
    printf("{\"bytes\": %zu, \"seconds\": %.6f, \"cpu_seconds\": %.6f, \"tls_library\": \"%s\"}\n", total,
           (double)(ended.tv_sec - began.tv_sec) + (double)(ended.tv_nsec - began.tv_nsec) / 1e9,
           seconds(usage.ru_utime) + seconds(usage.ru_stime), authority ? OpenSSL_version(OPENSSL_VERSION) : "");
    return 0;
}
