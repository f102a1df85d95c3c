// Waiting for the ranks of a node: spinning, sleeping, and noticing that a rank has ended.
#include "node.hpp"

#include <sched.h>
#include <time.h>
#if defined(__linux__)
#include <linux/futex.h>
#include <linux/membarrier.h>
#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <algorithm>

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

}  // namespace

bool Node::sleepers_can_fence() const { return register_for_fences() && fence_all_cores(); }

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

}  // namespace hpcai::cpu
