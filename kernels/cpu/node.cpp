#include "node.hpp"

#include <sched.h>
#include <time.h>
#if defined(__linux__)
#include <linux/futex.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <cstring>
#include <tuple>

namespace hpcai::cpu {
namespace {

inline void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

double now() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
}

#if defined(__linux__)
void futex_wait(std::atomic<std::uint32_t>& word, std::uint32_t seen) {
    const timespec limit{0, 20'000'000};
    syscall(SYS_futex, reinterpret_cast<std::uint32_t*>(&word), FUTEX_WAIT, seen, &limit, nullptr, 0);
}

void futex_wake(std::atomic<std::uint32_t>& word) {
    syscall(SYS_futex, reinterpret_cast<std::uint32_t*>(&word), FUTEX_WAKE, 1 << 30, nullptr, nullptr, 0);
}
#else  // without futexes a sleeper looks again every 100 us
void futex_wait(std::atomic<std::uint32_t>&, std::uint32_t) {
    const timespec nap{0, 100'000};
    nanosleep(&nap, nullptr);
}
void futex_wake(std::atomic<std::uint32_t>&) {}
#endif

// Chunk `part` of n elements cut into `parts`: the same cut as hpcai.comm.algorithms.schedule.split.
std::pair<std::size_t, std::size_t> chunk(std::size_t n, int parts, int part) {
    const auto cut = [&](int i) { return std::size_t(__uint128_t(n) * unsigned(i) / unsigned(parts)); };
    return {cut(part), cut(part + 1)};
}

}  // namespace

Node::Node(int rank, int size, void* desks, double timeout, bool crowded)
    : timeout_s(timeout), rank_(rank), size_(size), desks_(static_cast<Desk*>(desks)), spins_(crowded ? 20 : 100) {
    proof_ = reinterpret_cast<std::uintptr_t>(this) * 0x9e3779b97f4a7c15u ^ std::uint64_t(now() * 1e9);
#if defined(__linux__)
    prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0);  // where Yama restricts whom a process may look into
    desk(rank_).pid = getpid();
#endif
    desk(rank_).proof_address = reinterpret_cast<std::uintptr_t>(&proof_);
    desk(rank_).proof = proof_;
}

bool Node::prove() const {
#if defined(__linux__)
    for (int r = 0; r < size_; ++r) {
        std::uint64_t seen = 0;
        iovec here{&seen, sizeof seen}, there{reinterpret_cast<void*>(desk(r).proof_address), sizeof seen};
        if (process_vm_readv(pid_t(desk(r).pid), &here, 1, &there, 1, 0) != ssize_t(sizeof seen) || seen != desk(r).proof) return false;
    }
    return true;
#else
    return false;
#endif
}

Node::~Node() {
#if defined(__linux__)
    for (int fd : watched_)
        if (fd >= 0) close(fd);
#endif
}

// A descriptor of a process becomes readable when the process ends, also when nobody has waited for it yet.
bool Node::watch() {
#if defined(__linux__) && defined(SYS_pidfd_open)
    watched_.assign(size_, -1);
    for (int r = 0; r < size_; ++r) {
        if (desk(r).pid == getpid()) continue;
        watched_[r] = int(syscall(SYS_pidfd_open, pid_t(desk(r).pid), 0));
        if (watched_[r] < 0) return false;
    }
    return true;
#else
    return false;
#endif
}

std::vector<int> Node::ended() const {
    std::vector<int> ranks;
#if defined(__linux__)
    for (int r = 0; r < int(watched_.size()); ++r) {
        pollfd asked{watched_[r], POLLIN, 0};
        if (watched_[r] >= 0 && poll(&asked, 1, 0) == 1 && (asked.revents & POLLIN)) ranks.push_back(r);
    }
#endif
    return ranks;
}

// A process that ended after it had come to this barrier is none that this barrier lacks.
bool Node::anyone_lost(std::uint32_t target) const {
    for (int r : ended())
        if (std::int32_t(desk(r).arrivals.load(std::memory_order_acquire) - target) < 0) return true;
    return false;
}

bool Node::revoked() const {
    for (int r = 0; r < size_; ++r)
        if (desk(r).revoked.load(std::memory_order_acquire)) return true;
    return false;
}

bool Node::copy_from(int rank, std::size_t offset, void* out, std::size_t bytes) const {
#if defined(__linux__)
    const std::uint64_t address = desk(rank).call[calls_ % kSlots].address + offset;
    iovec here{out, bytes}, there{reinterpret_cast<void*>(address), bytes};
    return process_vm_readv(pid_t(desk(rank).pid), &here, 1, &there, 1, 0) == ssize_t(bytes);
#else
    return false;
#endif
}

bool Node::copy_to(int rank, std::size_t offset, const void* x, std::size_t bytes) const {
#if defined(__linux__)
    const std::uint64_t address = desk(rank).call[calls_ % kSlots].address + offset;
    iovec here{const_cast<void*>(x), bytes}, there{reinterpret_cast<void*>(address), bytes};
    return process_vm_writev(pid_t(desk(rank).pid), &here, 1, &there, 1, 0) == ssize_t(bytes);
#else
    return false;
#endif
}

void Node::add_block(std::int64_t id, void* base, std::size_t stride) {
    blocks_.push_back({id, static_cast<unsigned char*>(base), stride});
}

void Node::remove_block(std::int64_t id) {
    blocks_.erase(std::remove_if(blocks_.begin(), blocks_.end(), [&](const Block& b) { return b.id == id; }), blocks_.end());
}

std::int64_t Node::place_of(const void* x, std::size_t bytes) const {
    const auto* at = static_cast<const unsigned char*>(x);
    for (const Block& b : blocks_) {
        const unsigned char* mine = b.base + std::size_t(rank_) * b.stride;
        if (at >= mine && at + bytes <= mine + b.stride) return (b.id << kPlaceBits) | std::int64_t(at - mine);
    }
    return -1;
}

void* Node::symmetric(std::int64_t place, int rank) const {
    for (const Block& b : blocks_)
        if (b.id == place >> kPlaceBits) return b.base + std::size_t(rank) * b.stride + (place & ((std::int64_t(1) << kPlaceBits) - 1));
    return nullptr;
}

// The barrier: count my arrival, then wait until everyone's count has reached mine. Spin for a microsecond (the others are
// usually about to come; longer, and a rank that shares this core waits for all of it), then give the core away, then sleep
// until woken. A counter is written by its owner alone.
bool Node::barrier() {
    const std::uint32_t target = ++epoch_;
    desk(rank_).arrivals.store(target, std::memory_order_seq_cst);
    if (desk(rank_).sleepers.load(std::memory_order_seq_cst)) futex_wake(desk(rank_).arrivals);
    for (int step = 1; step < size_; ++step)
        if (!wait_for((rank_ + step) % size_, target)) {
            desk(rank_).out.store(1, std::memory_order_seq_cst);
            return false;
        }
    return true;
}

// After a closing barrier that failed: others may still be writing into this rank's array, which its owner may now free. Wait
// until each has come to the barrier, has left the collective as well, or has ended.
void Node::settle() const {
    const double end = now() + 2.0;
    for (bool writing = true; writing && now() < end;) {
        const std::vector<int> gone = ended();
        writing = false;
        for (int r = 0; r < size_; ++r)
            writing |= std::int32_t(desk(r).arrivals.load(std::memory_order_acquire) - epoch_) < 0 &&
                       !desk(r).out.load(std::memory_order_acquire) && std::find(gone.begin(), gone.end(), r) == gone.end();
        if (writing) sched_yield();
    }
}

bool Node::wait_for(int rank, std::uint32_t target) {
    auto& arrivals = desk(rank).arrivals;
    const auto came = [&] { return std::int32_t(arrivals.load(std::memory_order_acquire) - target) >= 0; };
    for (int i = 0; i < spins_; ++i) {
        if (came()) return true;
        pause();
    }
    for (int i = 0; i < 3; ++i) {
        if (came()) return true;
        sched_yield();
    }
    const double begin = checks ? now() : 0;  // shorter waits are not lateness, and are not worth a look at the clock
    for (int i = 3; i < 1000; ++i) {
        if (came()) return waited(begin);
        sched_yield();
    }
    waiting_since.store(begin, std::memory_order_relaxed);
    const double end = now() + timeout_s;
    auto& sleepers = desk(rank).sleepers;
    sleepers.fetch_add(1, std::memory_order_seq_cst);
    bool here = came();
    while (!here && now() < end) {
        const bool over = revoked() || anyone_lost(target);
        const std::uint32_t seen = arrivals.load(std::memory_order_seq_cst);
        if (std::int32_t(seen - target) < 0 && !over) futex_wait(arrivals, seen);
        here = came();  // looked at last: who came and ended has come
        if (over) break;
    }
    sleepers.fetch_sub(1, std::memory_order_seq_cst);
    waiting_since.store(0, std::memory_order_relaxed);
    waited(begin);
    return here;
}

// Count the time since `begin` as waiting: what came first cannot be late.
bool Node::waited(double begin) {
    if (checks) waited_s.store(waited_s.load(std::memory_order_relaxed) + now() - begin, std::memory_order_relaxed);
    return true;
}

std::vector<int> Node::missing() const {
    std::vector<int> ranks;
    for (int r = 0; r < size_; ++r)
        if (std::int32_t(desk(r).arrivals.load(std::memory_order_acquire) - epoch_) < 0) ranks.push_back(r);
    return ranks;
}

// Calls alternate between two slots: a rank can write slot s again only two calls later, and in the call between there was a
// barrier to which every reader of slot s had to come.
void Node::publish(const std::int64_t* key, std::int64_t place, const void* x) {
    Call& call = desk(rank_).call[++calls_ % kSlots];
    std::memcpy(call.key, key, sizeof call.key);
    call.place = place;
    call.address = reinterpret_cast<std::uintptr_t>(x);
}

bool Node::same() const {
    if (!checks) return true;
    const unsigned slot = calls_ % kSlots;
    for (int r = 0; r < size_; ++r)
        if (std::memcmp(desk(r).call[slot].key, desk(rank_).call[slot].key, sizeof(Call::key)) != 0) return false;
    return true;
}

bool Node::all_symmetric() const {
    const unsigned slot = calls_ % kSlots;
    const std::int64_t place = desk(rank_).call[slot].place;
    for (int r = 0; r < size_; ++r)
        if (desk(r).call[slot].place != place) return false;
    return place >= 0;
}

bool Node::none_symmetric() const {
    for (int r = 0; r < size_; ++r)
        if (desk(r).call[calls_ % kSlots].place >= 0) return false;
    return true;
}

Status Node::agree(const std::int64_t* key) {
    publish(key, -1, nullptr);
    if (!barrier()) return STALLED;
    return same() ? DONE : MISMATCH;
}

Status Node::collective(Kind kind, Type type, Op op, long divisor, int root, void* x, std::size_t n, std::size_t itemsize,
                        const std::int64_t* key) {
    const std::size_t bytes = n * itemsize;
    // A symmetric array is not copied unless it is tiny: half of it was last written by other cores, and to read it is slow.
    const std::int64_t place = bytes <= kTiny ? -1 : place_of(x, bytes);
    const bool travels = kind == ALLREDUCE && bytes <= kSmall && place < 0;
    const bool through = place < 0 && !travels && (!reaches_ || bytes <= staged_bytes);
    auto* first = static_cast<unsigned char*>(x);
    publish(key, place, x);
    if (travels) std::memcpy(desk(rank_).small[calls_ % kSlots], x, bytes);
    if (through) put(kind, root, first, n, itemsize, 0);
    if (!barrier()) return STALLED;
    if (!same()) return MISMATCH;
    if (n == 0) return DONE;
    const bool none = none_symmetric();
    if (travels && none) return small(type, op, divisor, x, n);
    if (all_symmetric()) return direct(kind, type, op, divisor, root, place, n, itemsize);
    if (through && none) return staged(kind, type, op, divisor, root, first, n, itemsize, true);
    if (reaches_) return reached(kind, type, op, divisor, root, first, n, itemsize);
    return staged(kind, type, op, divisor, root, first, n, itemsize, false);
}

// Short messages came with the call: everyone folds everyone's for itself, in rank order, after that one barrier.
Status Node::small(Type type, Op op, long divisor, void* x, std::size_t n) {
    std::vector<const void*> xs(size_);
    for (int r = 0; r < size_; ++r) xs[r] = desk(r).small[calls_ % kSlots];
    fold_ranks(type, op, &x, 1, xs.data(), size_, divisor, 0, n);
    return DONE;
}

// Symmetric arrays: each rank reduces its own chunk from all ranks' arrays and writes it to all of them (or keeps it).
// P reads and P writes of every element in all, and no copy. The second barrier says that all chunks are written.
Status Node::direct(Kind kind, Type type, Op op, long divisor, int root, std::int64_t place, std::size_t n,
                    std::size_t itemsize) {
    std::vector<void*> arrays(size_);
    for (int r = 0; r < size_; ++r) arrays[r] = symmetric(place, r);
    auto [from, to] = chunk(n, size_, rank_);
    if (kind == ALLREDUCE) {
        fold_ranks(type, op, arrays.data(), size_, arrays.data(), size_, divisor, from, to);
    } else if (kind == REDUCE_SCATTER) {
        void* mine = arrays[rank_];
        fold_ranks(type, op, &mine, 1, arrays.data(), size_, divisor, from, to);
    } else if (kind == ALLGATHER) {
        for (int step = 1; step < size_; ++step) {
            const int r = (rank_ + step) % size_;
            auto [a, b] = chunk(n, size_, r);
            std::memcpy(static_cast<char*>(arrays[rank_]) + a * itemsize, static_cast<char*>(arrays[r]) + a * itemsize, (b - a) * itemsize);
        }
    } else if (rank_ != root) {
        std::memcpy(arrays[rank_], arrays[root], n * itemsize);
    }
    return barrier() ? DONE : STALLED;
}

// Arrays in private memory, where the kernel lets ranks copy from and to each other's: as `direct`, with each segment fetched
// into a scratch that fits the cache, folded, and written back to all. Nothing is copied twice, and an element is always
// touched by the same core, which its next reduction finds in that core's cache.
Status Node::reached(Kind kind, Type type, Op op, long divisor, int root, unsigned char* x, std::size_t n, std::size_t itemsize) {
    auto [first, last] = chunk(n, size_, rank_);
    bool fine = true;
    if (kind == ALLREDUCE || kind == REDUCE_SCATTER) {
        const std::size_t step = kReach / itemsize;
        scratch_.resize(std::size_t(size_) * kReach);
        std::vector<const void*> xs(size_);
        for (std::size_t at = first; at < last && fine; at += step) {
            const std::size_t count = std::min(step, last - at), bytes = count * itemsize;
            for (int r = 0; r < size_; ++r) {
                xs[r] = r == rank_ ? x + at * itemsize : scratch_.data() + std::size_t(r) * kReach;
                if (r != rank_) fine = fine && copy_from(r, at * itemsize, const_cast<void*>(xs[r]), bytes);
            }
            void* out = x + at * itemsize;
            fold_ranks(type, op, &out, 1, xs.data(), size_, divisor, 0, count);
            for (int r = 0; r < size_ && kind == ALLREDUCE; ++r)
                if (r != rank_) fine = fine && copy_to(r, at * itemsize, out, bytes);
        }
    } else if (kind == ALLGATHER) {
        for (int step = 1; step < size_; ++step) {
            const int r = (rank_ + step) % size_;
            auto [a, b] = chunk(n, size_, r);
            fine = fine && copy_all(r, a * itemsize, x + a * itemsize, (b - a) * itemsize);
        }
    } else if (rank_ != root) {
        fine = copy_all(root, 0, x, n * itemsize);
    }
    if (!barrier()) {
        settle();
        return STALLED;
    }
    return fine ? DONE : UNREACHED;
}

// copy_from without the kernel's limit of 2 GiB a call.
bool Node::copy_all(int rank, std::size_t offset, unsigned char* out, std::size_t bytes) const {
    constexpr std::size_t most = std::size_t(1) << 30;
    bool fine = true;
    for (std::size_t at = 0; at < bytes && fine; at += most) fine = copy_from(rank, offset + at, out + at, std::min(most, bytes - at));
    return fine;
}

// Private arrays go through the desks in segments that fit the cache: copy in, barrier, fold or copy from all desks into my
// array. Two segments in turn need one barrier each: writing segment s again is two barriers away from reading it. has_first: each
// rank has put its first piece before the barrier of the call, which serves for that piece too.
Status Node::staged(Kind kind, Type type, Op op, long divisor, int root, unsigned char* x, std::size_t n, std::size_t itemsize,
                    bool has_first) {
    const std::size_t longest = kind == ALLGATHER ? (n + unsigned(size_) - 1) / unsigned(size_) : n, step = kSegment / itemsize;
    for (std::size_t at = 0; at < longest; at += step, ++turn_) {
        if (at > 0 || !has_first) {
            put(kind, root, x, n, itemsize, at);
            if (!barrier()) return STALLED;
        }
        if (kind != ALLREDUCE && kind != REDUCE_SCATTER) copy_staged(kind, root, x, n, itemsize, at);
        else if (!fold_staged(kind, type, op, divisor, x, n, itemsize, at)) return STALLED;
    }
    return DONE;
}

// Copy into this rank's segment what the others need of its array from element `at` on (of its chunk, in an all-gather).
std::size_t Node::put(Kind kind, int root, const unsigned char* x, std::size_t n, std::size_t itemsize, std::size_t at) {
    auto [from, to] = kind == ALLGATHER ? chunk(n, size_, rank_) : std::pair<std::size_t, std::size_t>{0, n};
    if (kind == BROADCAST && rank_ != root) to = 0;
    const std::size_t first = from + at, count = first < to ? std::min(kSegment / itemsize, to - first) : 0;
    std::memcpy(desk(rank_).segment[turn_ % kSegments], x + first * itemsize, count * itemsize);
    return count;
}

// Few ranks each fold the whole segment. Of more, each folds its chunk of the segment in its own desk, for the others to copy.
bool Node::fold_staged(Kind kind, Type type, Op op, long divisor, unsigned char* x, std::size_t n, std::size_t itemsize,
                       std::size_t at) {
    const std::size_t count = std::min(kSegment / itemsize, n - at);
    const unsigned turn = turn_ % kSegments;
    unsigned char* mine = x + at * itemsize;
    std::vector<const void*> xs(size_);
    for (int r = 0; r < size_; ++r) xs[r] = r == rank_ ? mine : desk(r).segment[turn];
    std::size_t from = 0, to = count;
    if (kind == REDUCE_SCATTER) {
        const auto own = chunk(n, size_, rank_);
        from = std::clamp(own.first, at, at + count) - at;
        to = std::clamp(own.second, at, at + count) - at;
    }
    const bool shared = kind == ALLREDUCE && size_ > kFew;
    if (shared) std::tie(from, to) = chunk(count, size_, rank_);
    void* outs[] = {mine, desk(rank_).segment[turn]};
    if (from < to) fold_ranks(type, op, outs, shared ? 2 : 1, xs.data(), size_, divisor, from, to);
    if (!shared) return true;
    if (!barrier()) return false;
    for (int next = 1; next < size_; ++next) {
        const int r = (rank_ + next) % size_;
        auto [a, b] = chunk(count, size_, r);
        std::memcpy(mine + a * itemsize, desk(r).segment[turn] + a * itemsize, (b - a) * itemsize);
    }
    return true;
}

void Node::copy_staged(Kind kind, int root, unsigned char* x, std::size_t n, std::size_t itemsize, std::size_t at) {
    for (int next = 1; next < size_; ++next) {
        const int r = (rank_ + next) % size_;
        auto [from, to] = kind == ALLGATHER ? chunk(n, size_, r) : std::pair<std::size_t, std::size_t>{0, r == root ? n : 0};
        if (from + at >= to) continue;
        const std::size_t count = std::min(kSegment / itemsize, to - from - at);
        std::memcpy(x + (from + at) * itemsize, desk(r).segment[turn_ % kSegments], count * itemsize);
    }
}

}  // namespace hpcai::cpu
