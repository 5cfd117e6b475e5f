/* The floor of a fan-out: one frame to each of many sockets by send(), and nothing else.

   floor SOCKETS BYTES: prints its port and accepts so many sockets; then for each line on standard input it sends all of
   them a frame of so many bytes that ends with the line, and prints the nanoseconds of processor time that it took. */

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static void send_all(int fd, const char *data, size_t size)
{
    while (size > 0) {
        ssize_t sent = send(fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0 && errno == EAGAIN) {
            struct pollfd wait = {fd, POLLOUT, 0};
            poll(&wait, 1, -1);
        } else if (sent < 0) {
            fail("send");
        } else {
            data += sent;
            size -= (size_t)sent;
        }
    }
}

int main(int argc, char **argv)
{
    if (argc != 3) {
        fprintf(stderr, "floor SOCKETS BYTES\n");
        return 2;
    }
    int count = atoi(argv[1]), buffer = 256 * 1024, yes = 1;
    size_t size = (size_t)atol(argv[2]);
    int *sockets = calloc((size_t)count, sizeof *sockets);
    char *frame = malloc(size);
    char line[64];
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t length = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM, 0);

    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(listener, SOL_SOCKET, SO_SNDBUF, &buffer, sizeof buffer);
    if (bind(listener, (struct sockaddr *)&address, length) < 0 || listen(listener, 1024) < 0
        || getsockname(listener, (struct sockaddr *)&address, &length) < 0)
        fail("listen");
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    for (int i = 0; i < count; i++)
        if ((sockets[i] = accept(listener, NULL, NULL)) < 0
            || setsockopt(sockets[i], IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes) < 0)
            fail("accept");
    memset(frame, 'x', size);
    while (fgets(line, sizeof line, stdin)) {
        struct timespec before, after;
        size_t mark = strcspn(line, "\n");

        if (mark > size) {
            fprintf(stderr, "a line longer than the frame\n");
            return 2;
        }
        memcpy(frame + size - mark, line, mark);
        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &before);
        for (int i = 0; i < count; i++)
            send_all(sockets[i], frame, size);
        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &after);
        printf("%lld\n", (after.tv_sec - before.tv_sec) * 1000000000LL + after.tv_nsec - before.tv_nsec);
        fflush(stdout);
    }
    return 0;
}
