from libc.string cimport memchr, memset

from kvcore.bytebuf cimport bytebuf_append, bytebuf_clear, bytebuf_discard, bytebuf_reserve, bytebuf_swap, bytebuf_truncate
from kvcore.clock cimport clock
from kvcore.store cimport STORE_AHEAD, Store, store_expect, store_flush, store_flushes, store_pending, store_warm
from kvcore.types cimport Slice, slice_of
from kvnet.commands.text cimport (
    FLAG_LISTS, FLAG_WRITES, text_commands, text_fail, text_find, text_list_more)
from kvnet.context cimport CHALLENGE, ESCABELO, LF
from kvnet.metrics cimport OUTCOME_ERROR, OUTCOME_OK, Outcome, histogram_add
from kvnet.residency cimport Residency, residency_doubted, residency_found, residency_ran, residency_renew
from kvnet.textwire cimport (
    FRAME_LINE, FRAME_MORE, FRAME_SKIPPED, Arguments, Frame, text_arguments, text_frame, text_key, text_limit,
    text_word)

from kvcore.errors import KVError
from kvnet.commands.text import COMMANDS


cdef enum:
    FLUSH_AT = 1 << 20          # unflushed bytes after which a run flushes in between
    REPLIES_AT = 1 << 20        # reply bytes waiting after which nothing more is executed
    FEW_REPLIES = 1 << 12       # bytes of replies up to which a flush is shared
    LIST_PART = 1 << 14         # bytes of a list sent at once: some clients take what comes first for all of it
    LOOK_EVERY = 32             # commands between looks at the clock
    ROOM = 1 << 14              # bytes received at a time, as a rule
    MOST_ROOM = 1 << 20         # and of a long command
    SPARE = 1 << 20             # bytes of room the spare reply buffer keeps
    KEPT = 256                  # and the buffer of a session that is empty
    MOST_WAITS = 4              # jobs that one command waits for
    INVALID = TEXT_COMMANDS     # the row of what is no command

cdef double TURN = 0.001        # seconds that a run may take
cdef double LIST_TURN = 0.0001  # and one in which a list is made

# Those that have received, and whose runs end with the next flush, whoever makes it.
cdef list unsettled = []

# Shared by all sessions, so that one that waits for its client costs little: the places where bytes arrive, and the memory
# of replies, which a session has only while it holds any.
cdef uint8_t[PLACES][ROOM] arrivals
cdef ByteBuf spare = ByteBuf()

DIALECTS = {"challenge": CHALLENGE, "escabelo": ESCABELO, "lf": LF}


def command_rows(metrics):
    """Make the metrics rows of this protocol, once a server; return the first (int), for Session."""
    return metrics.add_commands("text", [name for name, _ in COMMANDS] + ["invalid"])


cdef class Session:
    """One connection's commands and replies. store: kvcore.Store; metrics: Metrics; row: of command_rows();
    dialect: one of DIALECTS; max_value_size: bytes; residency: Residency, or None for one of its own.
    """

    def __cinit__(self, Store store not None, Metrics metrics not None, int row, dialect="challenge",
                  size_t max_value_size=64 << 20, Residency residency=None):
        self.context = Context()
        self.context.store = store
        self.context.metrics = metrics
        self.context.dialect = DIALECTS[dialect]
        self.context.out = ByteBuf()
        self.metrics = metrics
        self.residency = Residency() if residency is None else residency
        self.row = row
        self.input = ByteBuf()
        self.writes = ByteBuf()
        self.now.framer.limit = text_limit(max_value_size)

    def feed(self, bytes data not None):
        """Execute the commands that these bytes complete. What cannot run yet is kept."""
        feed(self, <const uint8_t*>data, len(data))

    def resume(self):
        """Go on with what waits, as far as the replies not yet taken allow."""
        cdef ByteBuf rest
        if self.context.job is not None:
            return
        run(self, self.input.data, self.input.len)
        bytebuf_discard(self.input, self.now.position)
        if self.input.len == 0:
            bytebuf_clear(self.input, KEPT)
        elif self.input.cap > 4 * MOST_ROOM and self.input.len < ROOM:
            # What a long command needed is given back, even when there is always a part of the next one.
            rest = ByteBuf()
            bytebuf_append(rest, self.input.data, self.input.len)
            self.input = rest

    def finish(self):
        """The client will send no more: a last command without its end is run, now or when resume() gets to it."""
        self.ended = True
        self.resume()

    @property
    def unfinished(self):
        """Whether resume() has something to do once replies have been taken (bool)."""
        return self.stopped

    @property
    def job(self):
        """What reads from the disk, on any thread, what the next command needs; None: nothing has to be. Then warm()."""
        return self.context.job

    def warm(self):
        """The job has been run: resume() may go on."""
        note_cold(self, clock())
        if not self.waits:
            residency_found(self.residency, self.context.job.looked)
        self.context.job = None

    @property
    def held(self):
        """Whether replies wait for a sync (bool)."""
        return session_held(self)

    @property
    def mark(self):
        """The position behind the last reply, in bytes since the session began (int): what a sync may release."""
        return self.taken + self.context.out.len

    def take(self):
        """Return the replies that may go out (bytes)."""
        cdef bytes data = self.context.out.data[:self.ready]
        session_sent(self)
        return data

    def release(self, uint64_t mark):
        """A sync covers all replies up to `mark`: they may go out, and what is held behind them without a write, too."""
        session_release(self, mark)

    def fail(self, reason):
        """The sync failed: the held writes answer an error after all (reason: str). What else was held may go out."""
        cdef ByteBuf out = self.context.out
        cdef ByteBuf old = ByteBuf()
        cdef size_t* places = <size_t*>self.writes.data
        cdef size_t i, done = self.ready
        bytebuf_append(old, out.data, out.len)
        bytebuf_truncate(out, self.ready)
        for i in range(self.writes.len // sizeof(size_t)):
            bytebuf_append(out, old.data + done, places[i] - done)
            text_fail(self.context, reason)
            done = places[i] + 8        # "success\r"
        bytebuf_append(out, old.data + done, old.len - done)
        bytebuf_clear(self.writes, KEPT)
        self.ready = out.len - self.kept
        observe(self, clock())


cdef int feed(Session s, const uint8_t* data, size_t n) except -1:
    s.metrics.received_bytes += n
    if s.input.len == 0 and not s.stopped:
        # The usual case: whole commands, parsed where they lie; what is left over is kept.
        run(s, data, n)
        bytebuf_append(s.input, data + s.now.position, n - s.now.position)
        return 0
    bytebuf_append(s.input, data, n)
    s.resume()
    return 0


cdef uint8_t* session_room(Session s, int place, size_t* n) except NULL:
    if s.input.len == 0:
        n[0] = ROOM
        return arrivals[place]
    # A long command, as a rule: the more of it has come, the more is received at a time.
    n[0] = min(max(s.input.len, <size_t>ROOM), <size_t>MOST_ROOM)
    return bytebuf_reserve(s.input, n[0])


cdef Slice session_coming(Session s, int place, size_t n) noexcept:
    cdef Slice[STORE_AHEAD] keys
    cdef size_t at = 0
    cdef size_t count
    s.ahead = 0
    if s.input.len:
        return slice_of(NULL, 0)
    count = coming_keys(arrivals[place], n, &at, keys, 1)
    if at == n:
        s.ahead = n             # one command: no others to look for when it comes
    return keys[0] if count else slice_of(NULL, 0)


cdef bint session_received(Session s, int place, size_t n) except -1:
    if s.stopped and s.input.len == 0:
        feed(s, arrivals[place], n)
        return False
    s.metrics.received_bytes += n
    if s.input.len:
        s.input.len += n
        s.resume()
        return False
    begin_run(s, arrivals[place], n)
    s.chunk = slice_of(arrivals[place], n)
    if store_pending(s.context.store) == 0 or s.context.out.len > FEW_REPLIES:
        session_settle(s)
        return False
    unsettled.append(s)
    return True


cdef int session_settle(Session s) except -1:
    cdef Slice chunk = s.chunk
    s.chunk.ptr = NULL
    end_run(s, chunk.ptr, chunk.len)
    bytebuf_append(s.input, chunk.ptr + s.now.position, chunk.len - s.now.position)
    return 0


# A flush has ended the runs of all that wait for one, or failed, and what they did was taken back.
cdef int resolve(Fate fate, object error) except -1:
    for s in unsettled:
        (<Session>s).fate = fate
        (<Session>s).refusal = error
    unsettled.clear()
    return 0


cdef int session_release(Session s, uint64_t mark) except -1:
    cdef size_t* places = <size_t*>s.writes.data
    cdef size_t done = 0, n = s.writes.len // sizeof(size_t)
    while done < n and s.taken + places[done] < mark:
        done += 1
    bytebuf_discard(s.writes, done * sizeof(size_t))
    s.ready = s.context.out.len - s.kept if done == n else places[0]
    if done == n:
        bytebuf_clear(s.writes, KEPT)
        observe(s, clock())
    return 0


cdef Slice session_ready(Session s) noexcept:
    return slice_of(s.context.out.data, s.ready)


cdef int session_sent(Session s) except -1:
    cdef ByteBuf out = s.context.out
    cdef size_t* places = <size_t*>s.writes.data
    cdef size_t i
    if s.ready == out.len:
        bytebuf_clear(out, SPARE)
        if out.cap > KEPT and spare.data == NULL:
            bytebuf_swap(out, spare)
        else:
            bytebuf_clear(out, KEPT)
    else:
        bytebuf_discard(out, s.ready)
    for i in range(s.writes.len // sizeof(size_t)):
        places[i] -= s.ready
    s.taken += s.ready
    s.metrics.sent_bytes += s.ready
    s.ready = 0
    return 0


# Execute what is complete in the n bytes at data; now.position says how far that went.
cdef int run(Session s, const uint8_t* data, size_t n) except -1:
    s.ahead = 0
    begin_run(s, data, n)
    return end_run(s, data, n)


# Everything but the flush, and what has to come behind it.
cdef int begin_run(Session s, const uint8_t* data, size_t n) except -1:
    cdef Context c = s.context
    s.started = clock()
    if c.out.data == NULL:
        bytebuf_swap(c.out, spare)
    s.steps = 0
    s.deadline = s.started + TURN
    s.now.position = 0
    s.now.reply = c.out.len
    s.now.writes = s.writes.len
    s.now.rows = 0
    memset(s.now.counts, 0, sizeof(s.now.counts))
    s.safe = s.now
    c.refusing = None
    c.doubt = residency_doubted(s.residency, s.started)
    s.fate = OPEN
    while step(s, data, n):
        pass
    residency_ran(s.residency, s.started, clock())
    return 0


cdef int end_run(Session s, const uint8_t* data, size_t n) except -1:
    cdef Context c = s.context
    while not settle(s):
        while step(s, data, n):
            pass
    s.stopped = c.cursor is not None or c.out.len >= REPLIES_AT or s.deadline == 0 or c.job is not None
    if c.job is not None:
        s.waits = False
        note_cold(s, s.started)
    count(s)
    return 0


# Something has to come from the disk: known at once of a key, of a list when the job has looked.
cdef int note_cold(Session s, double now) except -1:
    if not s.waits and s.context.job.cold:
        s.waits = True
        s.metrics.cold_waits += 1
        residency_renew(s.residency, now)
    return 0


# One command, or one more part of a list. 0 when there is no more to do now.
cdef bint step(Session s, const uint8_t* data, size_t n) except -1:
    cdef Context c = s.context
    cdef size_t used
    cdef Slice line
    cdef Frame frame
    s.now.reply = c.out.len
    s.now.writes = s.writes.len
    if store_pending(c.store) >= FLUSH_AT and not settle(s):
        return True
    if c.cursor is not None:
        list_more(s)
        return c.cursor is None
    if s.now.position == n or c.out.len >= REPLIES_AT or is_late(s):
        return False
    if s.now.position >= s.ahead:
        look_ahead(s, data, n)
    frame = text_frame(&s.now.framer, data + s.now.position, n - s.now.position, &used, &line)
    if frame == FRAME_MORE and s.ended and s.now.position + used < n:
        # The last command lacks its end.
        line = slice_of(data + s.now.position, n - s.now.position)
        used = line.len
        s.now.framer.scanned = 0
        frame = FRAME_LINE
    if frame == FRAME_LINE:
        execute(s, line, used)
        if c.job is not None:
            bring_ahead(s, data, n)
            return False
    else:
        s.now.position += used
        if frame != FRAME_MORE and frame != FRAME_SKIPPED:
            text_fail(c, "the command is too long")
            s.metrics.commands_too_long += 1
            note(s, INVALID, OUTCOME_ERROR)
    return frame != FRAME_MORE


# A part of a list is made in several turns, and sent when it is whole.
cdef int list_more(Session s) except -1:
    cdef Context c = s.context
    cdef size_t before = c.out.len
    text_list_more(c, before - s.kept + LIST_PART, clock() + LIST_TURN)
    s.kept += c.out.len - before
    if c.cursor is None or c.job is not None or s.kept >= LIST_PART:
        s.kept = 0
    # Making the list flushed all before it: there is nothing in it to go back over.
    s.now.reply = c.out.len
    s.safe = s.now
    return 0


# Tell the store the keys of the next commands. In a pipeline over many keys most of the time goes into waiting for memory;
# this way it is waited for all of them at once.
cdef void look_ahead(Session s, const uint8_t* data, size_t n) noexcept:
    cdef Slice[STORE_AHEAD] keys
    cdef size_t count
    s.ahead = s.now.position
    count = coming_keys(data, n, &s.ahead, keys, STORE_AHEAD)
    if count > 1:
        store_expect(s.context.store, keys, count)


# Find the keys of the commands from *at on, so many at most; *at moves behind them. How many there are.
cdef size_t coming_keys(const uint8_t* data, size_t n, size_t* at, Slice* keys, size_t wanted) noexcept:
    cdef size_t count = 0, most = min(n, at[0] + ROOM)
    cdef const uint8_t* end
    while count < wanted and at[0] < most:
        end = <const uint8_t*>memchr(data + at[0], 13, most - at[0])
        if end == NULL:
            at[0] = n
            break
        keys[count] = text_key(slice_of(data + at[0], end - (data + at[0])))
        count += keys[count].len > 0
        at[0] = end + 1 - data
    return count


# Does the command have to wait for a job? For the disk once: were memory so short that what has been read is gone again, it
# might wait for ever. A list also for what was written while others sorted for it: there is less of that each time.
cdef bint must_wait(Session s, int row, const Arguments* a) except -1:
    cdef Context c = s.context
    cdef bint doubt = c.doubt and s.waited == 0
    cdef bint sorts = text_commands[row].flags & FLAG_LISTS and s.waited < MOST_WAITS
    if text_commands[row].warm != NULL and (doubt or sorts):
        text_commands[row].warm(c, a, doubt)
        if c.job is not None:
            s.waited += 1
            return True
        if doubt:
            residency_found(s.residency, 1)
    s.waited = 0
    return False


# The command at now.position waits. With doubt whether all is in memory, what those behind it need is read at the same time.
cdef int bring_ahead(Session s, const uint8_t* data, size_t n) except -1:
    cdef Context c = s.context
    cdef Slice[STORE_AHEAD] keys
    cdef size_t at = s.now.position, i
    s.now.framer.after_return = False       # it will be framed again
    if not c.doubt:
        return 0
    for i in range(1, coming_keys(data, n, &at, keys, STORE_AHEAD)):
        c.job = store_warm(c.store, keys[i], True, c.job)
    return 0


# Is it the turn of other clients? A deadline that has passed becomes 0.
cdef bint is_late(Session s) noexcept:
    s.steps += 1
    if s.steps % LOOK_EVERY == 0 and clock() > s.deadline:
        s.deadline = 0
        s.metrics.turns_over += 1
    return s.deadline == 0


cdef int execute(Session s, Slice line, size_t used) except -1:
    cdef Context c = s.context
    cdef Arguments a
    cdef Outcome outcome = OUTCOME_ERROR
    cdef size_t word = text_word(line), pending
    cdef uint64_t flushes
    cdef size_t place
    cdef bint undone
    cdef int row = text_find(slice_of(line.ptr, word))
    if row < 0 or text_arguments(line, word, text_commands[row].shape, &a) < 0:
        text_fail(c, "no such command" if row < 0 else "bad argument")
        row = INVALID
    else:
        pending = store_pending(c.store)
        flushes = store_flushes(c.store)
        try:
            if (c.doubt or text_commands[row].flags & FLAG_LISTS) and must_wait(s, row, &a):
                return 0
            outcome = text_commands[row].run(c, &a)
        except BaseException as error:
            undone = store_pending(c.store) < pending and store_flushes(c.store) == flushes
            if undone:
                # What it failed at was the flush of the commands before it: they were taken back.
                resolve(UNDONE, error)
            if not isinstance(error, (KVError, MemoryError)):
                raise
            if undone:
                go_back(s, error)
                return 0
            bytebuf_truncate(c.out, s.now.reply)
            text_fail(c, error)
        if store_flushes(c.store) != flushes:
            # It flushed before it began: whatever happens, the commands before it stand.
            resolve(DONE, None)
            s.safe = s.now
        if text_commands[row].flags & FLAG_WRITES and outcome == OUTCOME_OK and s.hold:
            place = s.now.reply
            bytebuf_append(s.writes, &place, sizeof(size_t))
    note(s, row, outcome)
    s.now.position += used
    return 0


# End the run's writes: flush. False when that failed, and the run has gone back to do its commands again.
cdef bint settle(Session s) except -1:
    if s.fate == OPEN:
        try:
            store_flush(s.context.store)
            resolve(DONE, None)
        except BaseException as error:
            # Whatever it was, the store has taken back what all of them did.
            resolve(UNDONE, error)
            if s.context.refusing is not None or not isinstance(error, KVError):
                raise               # nothing was written, and still it fails: the store was closed; or a bug
            s.fate = UNDONE
            s.refusal = error
    if s.fate == UNDONE:
        s.fate = OPEN
        go_back(s, s.refusal)
        s.refusal = None
        return False
    s.fate = OPEN
    s.now.reply = s.context.out.len
    s.now.writes = s.writes.len
    s.safe = s.now
    return True


cdef int go_back(Session s, object error) except -1:
    s.now = s.safe
    bytebuf_truncate(s.context.out, s.now.reply)
    bytebuf_truncate(s.writes, s.now.writes)
    s.context.cursor = None
    s.context.job = None
    s.kept = 0
    s.waited = 0
    s.context.refusing = str(error)
    s.deadline = clock() + TURN     # or it might come no further than this, turn after turn
    return 0


cdef inline void note(Session s, int row, Outcome outcome) noexcept:
    s.now.rows |= 1 << row
    s.now.counts[row][<int>outcome] += 1


# Enter the run's commands into the metrics, and decide which of its replies may go out.
cdef int count(Session s) except -1:
    cdef ByteBuf out = s.context.out
    cdef int row, outcome
    if s.held_since == 0:
        s.held_since = s.started
    for row in range(TEXT_COMMANDS + 1):
        if not s.now.rows >> row & 1:
            continue
        for outcome in range(<int>OUTCOMES):
            s.metrics.outcomes[s.row + row][outcome] += s.now.counts[row][outcome]
            s.held_counts[row] += s.now.counts[row][outcome]
    if s.writes.len == 0:
        s.ready = out.len - s.kept
        observe(s, clock())
    elif s.ready < (<size_t*>s.writes.data)[0]:
        s.ready = (<size_t*>s.writes.data)[0]
    return 0


cdef int observe(Session s, double now) except -1:
    cdef double seconds = now - s.held_since
    cdef int row
    for row in range(TEXT_COMMANDS + 1):
        if s.held_counts[row]:
            histogram_add(&s.metrics.seconds[s.row + row], seconds, s.held_counts[row])
            s.held_counts[row] = 0
    s.held_since = 0
    return 0
