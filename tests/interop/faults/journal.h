// The journal: one record for each change below the tree, and one for each completed sync.
// A record is a header, two names, and blocks of the earlier contents.

enum kind { WRITE = 1, SIZE, CREATE, UNLINK, RENAME, MKDIR, RMDIR, LINK, SYNC };

// What has happened to the file that had the name before a rename or an unlink.
enum { SAVED_ASIDE = 1, REPLACED_DIR = 2, EXCHANGED = 4 };

struct record {
    uint32_t len; // of the whole record
    uint32_t kind;
    uint64_t seq;
    uint64_t ino;
    uint64_t dir, dir2; // directories of the names
    uint64_t off;       // WRITE: offset; SIZE: new size; SYNC: covers records up to this seq; names: flags
    uint64_t n;
    uint64_t size; // of the file before the change
    uint32_t name_len, name2_len;
};

struct block {
    uint64_t off;
    uint64_t n;
};

// Changes that no sync covers yet, and the files that are kept in the side directory for them.
struct pending {
    uint64_t seq, ino, dir, dir2;
    int content;
};
static struct pending *pending;
static size_t pending_count, pending_room;
static uint64_t *aside;
static size_t aside_count, aside_room;

static int journal, strict;
static uint64_t seq;
static const char *side_path;
static char *buf;
static size_t buf_len, buf_room;

static void die(const char *what) {
    fprintf(stderr, "faults: %s: %s\n", what, strerror(errno));
    exit(125);
}

static uint64_t last_seq(void) { return seq; }

static void open_journal(void) {
    const char *path = getenv("FAULTS_JOURNAL");
    side_path = getenv("FAULTS_SIDE");
    strict = getenv("FAULTS_STRICT") && *getenv("FAULTS_STRICT") == '1';
    if (!path || !side_path || (mkdir(side_path, 0700) && errno != EEXIST)) die("no journal or no side directory");
    journal = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0600);
    if (journal < 0) die(path);
}

static void *grow(void *p, size_t *room, size_t want, size_t each) {
    if (want <= *room) return p;
    *room = want * 2;
    if (!(p = realloc(p, *room * each))) die("memory");
    return p;
}

static void add(const void *data, size_t n) {
    buf = grow(buf, &buf_room, buf_len + n, 1);
    memcpy(buf + buf_len, data, n);
    buf_len += n;
}

static void flush(struct record *r) {
    r->len = buf_len;
    memcpy(buf, r, sizeof *r);
    for (size_t done = 0; done < buf_len;) {
        ssize_t w = write(journal, buf + done, buf_len - done);
        if (w <= 0) die("journal");
        done += w;
    }
    buf_len = 0;
    if (r->kind == SYNC) return;
    pending = grow(pending, &pending_room, pending_count + 1, sizeof *pending);
    pending[pending_count++] = (struct pending){r->seq, r->ino, r->dir, r->dir2, r->kind == WRITE || r->kind == SIZE};
}

static int zero(const char *p, size_t n) { return !*p && !memcmp(p, p + 1, n - 1); }

// add_blocks adds the contents of the file between two offsets, without zeros.
static void add_blocks(int d, uint64_t from, uint64_t to) {
    static char chunk[4096];
    char link[64];
    if (from >= to) return;
    snprintf(link, sizeof link, "/proc/self/fd/%d", d); // d may be for writing only
    int in = open(link, O_RDONLY | O_CLOEXEC);
    if (in < 0) die("cannot read what will be overwritten");
    while (from < to) {
        off_t data = lseek(in, from, SEEK_DATA);
        if (data < 0 || (uint64_t)data >= to) break;
        from = data;
        size_t n = sizeof chunk - from % sizeof chunk;
        if (n > to - from) n = to - from;
        ssize_t got = pread(in, chunk, n, from);
        if (got <= 0) break;
        if (!zero(chunk, got)) {
            struct block b = {from, got};
            add(&b, sizeof b);
            add(chunk, got);
        }
        from += got;
    }
    close(in);
}

static void record_content(enum kind kind, int d, struct stat *st, uint64_t off, uint64_t n, uint64_t from, uint64_t to) {
    struct record r = {.kind = kind, .seq = ++seq, .ino = st->st_ino, .off = off, .n = n, .size = st->st_size};
    add(&r, sizeof r);
    add_blocks(d, from, to < r.size ? to : r.size);
    flush(&r);
}

static void record_name(enum kind kind, int flags, uint64_t ino, uint64_t dir, const char *base, uint64_t dir2, const char *base2) {
    struct record r = {.kind = kind, .seq = ++seq, .ino = ino, .dir = dir, .dir2 = dir2, .off = flags,
                       .name_len = strlen(base), .name2_len = strlen(base2)};
    add(&r, sizeof r);
    add(base, r.name_len);
    add(base2, r.name2_len);
    flush(&r);
}

// save_aside links a file that is about to lose its name into the side directory, under the number of the record.
static int save_aside(const char *path, struct stat *st) {
    char to[PATH_MAX];
    if (S_ISDIR(st->st_mode)) return 0;
    snprintf(to, sizeof to, "%s/%llu", side_path, (unsigned long long)seq + 1);
    unlink(to);
    if (link(path, to)) die("cannot keep a file aside");
    aside = grow(aside, &aside_room, aside_count + 1, sizeof *aside);
    aside[aside_count++] = seq + 1;
    return SAVED_ASIDE;
}

static int names(const struct pending *p, uint64_t ino) {
    return !p->content && (p->dir == ino || p->dir2 == ino || (!strict && p->ino == ino));
}

// record_sync marks the contents of a file, or the names in a directory, as durable; ino 0 stands for everything.
// Without strict, a sync commits the file system's journal, and with it all earlier changes of names.
static void record_sync(uint64_t ino, uint64_t upto) {
    struct record r = {.kind = SYNC, .seq = ++seq, .ino = ino, .off = upto};
    add(&r, sizeof r);
    flush(&r);
    uint64_t committed = 0;
    for (size_t i = 0; !strict && i < pending_count; i++)
        if (pending[i].seq <= upto && names(&pending[i], ino)) committed = pending[i].seq;
    size_t left = 0;
    for (size_t i = 0; i < pending_count; i++) {
        struct pending *p = &pending[i];
        int durable = p->seq <= upto && (!ino || (p->content ? p->ino == ino : names(p, ino) || p->seq <= committed));
        if (!durable) pending[left++] = *p;
    }
    pending_count = left;
    if (left) return;
    if (ftruncate(journal, 0)) die("journal");
    for (; aside_count; aside_count--) {
        char path[PATH_MAX];
        snprintf(path, sizeof path, "%s/%llu", side_path, (unsigned long long)aside[aside_count - 1]);
        unlink(path);
    }
}
