#include "node.hpp"

#include <sched.h>
#include <time.h>
#if defined(__linux__)
#include <linux/futex.h>
#include <linux/membarrier.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <cstring>

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

constexpr long kNap = 20'000'000, kNapBesideMessages = 200'000;  // nanoseconds until a sleeper looks around

#if defined(__linux__)
void futex_wait(std::atomic<std::uint32_t>& word, std::uint32_t seen, long nanoseconds) {
    const timespec limit{0, nanoseconds};
    syscall(SYS_futex, reinterpret_cast<std::uint32_t*>(&word), FUTEX_WAIT, seen, &limit, nullptr, 0);
}

void futex_wake(std::atomic<std::uint32_t>& word) {
    syscall(SYS_futex, reinterpret_cast<std::uint32_t*>(&word), FUTEX_WAKE, 1 << 30, nullptr, nullptr, 0);
}
// Cores that run none of the registered processes have nothing to fence.
bool register_for_fences() { return syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED, 0, 0) == 0; }
bool fence_all_cores() { return syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL_EXPEDITED, 0, 0) == 0; }
#else  // without futexes a sleeper looks again every 100 us
void futex_wait(std::atomic<std::uint32_t>&, std::uint32_t, long) {
    const timespec nap{0, 100'000};
    nanosleep(&nap, nullptr);
}
void futex_wake(std::atomic<std::uint32_t>&) {}
bool register_for_fences() { return false; }
bool fence_all_cores() { return false; }
#endif

// A call's key in one number. Keys that differ in one field never have the same, others with a chance of 2**-64.
std::uint64_t digest_of(const std::int64_t* key) {
    std::uint64_t digest = 0;
    for (int i = 0; i < kKey; ++i) {
        digest = (digest ^ std::uint64_t(key[i])) * 0x9E3779B97F4A7C15u;
        digest ^= digest >> 32;
    }
    return digest;
}

}  // namespace

Node::Node(int rank, int size, void* desks, double timeout, bool crowded)
    : timeout_s(timeout), rank_(rank), size_(size), desks_(static_cast<Desk*>(desks)), spins_(crowded ? 20 : 100), arrays_(size) {
    proof_ = reinterpret_cast<std::uintptr_t>(this) * 0x9e3779b97f4a7c15u ^ std::uint64_t(now() * 1e9);
#if defined(__linux__)
    prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0);  // where Yama restricts whom a process may look into
    desk(rank_).pid = getpid();
#endif
    desk(rank_).proof_address = reinterpret_cast<std::uintptr_t>(&proof_);
    desk(rank_).proof = proof_;
}

bool Node::sleepers_can_fence() const { return register_for_fences() && fence_all_cores(); }

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
//
// A barrier that begins a call is awaited at the announcements, whose lines bring all that others must know. Between an arrival
// and the look at sleepers belongs a fence, for which a core waits until its writes have arrived everywhere. So who falls asleep,
// which is seldom, has the kernel make it on all cores.
bool Node::barrier(bool announcing) {
    const std::uint32_t target = ++epoch_;
    if (announcing) announced(rank_).arrivals.store(target, std::memory_order_release);
    desk(rank_).arrivals.store(target, std::memory_order_release);
    if (sleepers_fence_) std::atomic_signal_fence(std::memory_order_seq_cst);
    else std::atomic_thread_fence(std::memory_order_seq_cst);
    if (desk(rank_).sleepers.load(std::memory_order_relaxed)) futex_wake(desk(rank_).arrivals);
    const bool here = spin(target, announcing);
    for (int step = 1; step < size_ && !here; ++step) {
        const int r = (rank_ + step) % size_;
        if (!wait_for(r, target, word(r, announcing))) {
            desk(rank_).out.store(1, std::memory_order_seq_cst);
            return false;
        }
    }
    return true;
}

// True if all came while this rank spun.
bool Node::spin(std::uint32_t target, bool announcing) const {
    int spins = spins_;
    for (int step = 1; step < size_; ++step) {
        const auto& count = word((rank_ + step) % size_, announcing);
        while (std::int32_t(count.load(std::memory_order_acquire) - target) < 0) {
            if (spins-- == 0) return false;
            pause();
        }
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

// word: the desk's counter, or that of an announcement, which is written before it.
bool Node::wait_for(int rank, std::uint32_t target, const std::atomic<std::uint32_t>& word) {
    auto& arrivals = desk(rank).arrivals;
    const auto came = [&] { return std::int32_t(word.load(std::memory_order_acquire) - target) >= 0; };
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
    if (sleepers_fence_) fence_all_cores();
    else std::atomic_thread_fence(std::memory_order_seq_cst);
    bool here = came();
    while (!here && now() < end) {
        const bool over = revoked() || anyone_lost(target);
        const bool messages = under_way && __atomic_load_n(under_way, __ATOMIC_RELAXED) > 0;
        if (messages) progress();
        const std::uint32_t seen = arrivals.load(std::memory_order_seq_cst);
        if (std::int32_t(seen - target) < 0 && !over) futex_wait(arrivals, seen, messages ? kNapBesideMessages : kNap);
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
// barrier to which every reader of slot s had to come. The head is written last, at once with the arrival: others spin on its
// line, and would fetch it twice.
void Node::announce(const std::int64_t* key, std::int64_t place, const void* x, std::size_t shortest) {
    ++calls_;
    Announcement& mine = announced(rank_);
    mine.digest = checks ? digest_of(key) : 0;
    mine.place = place;
    mine.address = reinterpret_cast<std::uintptr_t>(x);
    std::memcpy(mine.shortest, x, shortest);
}

bool Node::same() const {
    for (int r = 0; r < size_; ++r)
        if (announced(r).digest != announced(rank_).digest) return false;
    return true;
}

bool Node::all_symmetric() const {
    const std::int64_t place = announced(rank_).place;
    for (int r = 0; r < size_; ++r)
        if (announced(r).place != place) return false;
    return place >= 0;
}

bool Node::none_symmetric() const {
    for (int r = 0; r < size_; ++r)
        if (announced(r).place >= 0) return false;
    return true;
}

Status Node::agree(const std::int64_t* key) {
    announce(key, -1, nullptr, 0);
    if (!barrier(true)) return STALLED;
    return same() ? DONE : MISMATCH;
}

Status Node::collective(const Work& work, const std::int64_t* key) {
    const std::size_t bytes = work.bytes();
    // A symmetric array is not copied unless it is tiny: half of it was last written by other cores, and to read it is slow.
    const std::int64_t place = bytes <= kTiny ? -1 : place_of(work.x, bytes);
    const bool at_once = travels(work) && place < 0, shortest = at_once && bytes <= kShortest;
    const bool through = place < 0 && (at_once || !reaches_ || bytes <= staged_bytes);
    if (through && !shortest) put(work, 0);
    announce(key, place, work.x, shortest ? bytes : 0);
    if (!barrier(true)) return STALLED;
    if (!same()) return MISMATCH;
    if (work.n == 0) return DONE;
    const bool none = none_symmetric();
    if (at_once && none) return small(work);
    if (all_symmetric()) return direct(work, place);
    if (through && none) return staged(work, true);
    return reaches_ ? reached(work) : staged(work, false);
}

}  // namespace hpcai::cpu
