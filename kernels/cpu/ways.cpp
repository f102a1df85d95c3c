// The ways of a collective through memory: with the call, straight in symmetric arrays, by system calls into private memory, or
// through segments. All fold in the order of the ranks, so that they come to the same bytes.
#include "node.hpp"

#if defined(__linux__)
#include <sys/uio.h>
#endif

#include <algorithm>
#include <cstring>

namespace hpcai::cpu {
namespace {

// Chunk `part` of n elements cut into `parts`: the same cut as hpcai.comm.algorithms.schedule.split.
std::pair<std::size_t, std::size_t> chunk(std::size_t n, int parts, int part) {
    const auto cut = [&](int i) { return std::size_t(__uint128_t(n) * unsigned(i) / unsigned(parts)); };
    return {cut(part), cut(part + 1)};
}

void swap(unsigned char* a, unsigned char* b, std::size_t bytes) {
    unsigned char held[4096];
    for (std::size_t at = 0; at < bytes; at += sizeof held) {
        const std::size_t count = std::min(sizeof held, bytes - at);
        std::memcpy(held, a + at, count);
        std::memcpy(a + at, b + at, count);
        std::memcpy(b + at, held, count);
    }
}

// Ask for cache lines as this core's own, which it will write next.
inline void claim(const unsigned char* x, std::size_t bytes) {
    for (std::size_t at = 0; at < bytes; at += 64) {
#if defined(__x86_64__)
        asm volatile("prefetchw %0" : : "m"(x[at]));
#else
        __builtin_prefetch(x + at, 1);
#endif
    }
}

constexpr std::size_t kClaim = 1024;  // bytes that are claimed ahead

void copy_claiming(unsigned char* out, const unsigned char* x, std::size_t bytes) {
    claim(x, std::min(kClaim, bytes));
    for (std::size_t at = 0; at < bytes; at += kClaim) {
        if (at + kClaim < bytes) claim(x + at + kClaim, std::min(kClaim, bytes - at - kClaim));
        std::memcpy(out + at, x + at, std::min(kClaim, bytes - at));
    }
}

}  // namespace

// The bytes of a rank's array that it gives to all others, where these are the same for all.
std::pair<std::size_t, std::size_t> Node::given(const Work& work, int rank) const {
    if (work.kind == ALLGATHER) {
        auto [from, to] = chunk(work.n, size_, rank);
        return {from * work.itemsize, to * work.itemsize};
    }
    return {0, work.kind == BROADCAST && rank != work.root ? 0 : work.bytes()};
}

// Two ranks swap a row of an all-to-all, each one half of it: the bytes of the row that this rank swaps with `rank`.
std::pair<std::size_t, std::size_t> Node::swapped(const Work& work, int rank) const {
    const std::size_t whole = row(work), half = whole / 2;
    return rank_ < rank ? std::pair{std::size_t(0), half} : std::pair{half, whole};
}

// Short messages came with the call: everyone folds everyone's for itself, in rank order, after that one barrier.
Status Node::small(const Work& work) {
    const std::size_t bytes = work.bytes();
    const bool shortest = bytes <= kShortest;
    for (int r = 0; r < size_; ++r) arrays_[r] = r == rank_ ? work.x : shortest ? announced(r).shortest : segment(r, bytes);
    void* out = work.x;
    if (shortest) {
        fold_ranks(work.type, work.op, &out, 1, arrays_.data(), size_, work.divisor, 0, work.n);
    } else {
        fold_segments(work, &out, 1, 0, bytes);
        used(bytes);
    }
    return DONE;
}

// Symmetric arrays: each rank reduces its own chunk from all ranks' arrays and writes it to all of them (or keeps it).
// P reads and P writes of every element in all, and no copy. The second barrier says that all chunks are written.
Status Node::direct(const Work& work, std::int64_t place) {
    for (int r = 0; r < size_; ++r) arrays_[r] = symmetric(place, r);
    auto* mine = static_cast<unsigned char*>(arrays_[rank_]);
    if (work.reduces()) {
        auto [from, to] = chunk(work.n, size_, rank_);
        const bool to_all = work.kind == ALLREDUCE;
        fold_ranks(work.type, work.op, to_all ? arrays_.data() : &arrays_[rank_], to_all ? size_ : 1, arrays_.data(), size_, work.divisor,
                   from, to);
        return barrier() ? DONE : STALLED;
    }
    for (int step = 1; step < size_; ++step) {
        const int r = (rank_ + step) % size_;
        auto* theirs = static_cast<unsigned char*>(arrays_[r]);
        auto [from, to] = work.kind == ALLTOALL ? swapped(work, r) : given(work, r);
        if (work.kind == ALLTOALL) swap(mine + r * row(work) + from, theirs + rank_ * row(work) + from, to - from);
        else std::memcpy(mine + from, theirs + from, to - from);
    }
    return barrier() ? DONE : STALLED;
}

// Arrays in private memory, where the kernel lets ranks copy from and to each other's: as `direct`. Nothing is copied twice, and
// an element is always touched by the same core, which its next reduction finds in that core's cache.
Status Node::reached(const Work& work) {
    bool fine = !work.reduces() || fold_reached(work);
    for (int step = 1; step < size_ && !work.reduces() && fine; ++step) {
        const int r = (rank_ + step) % size_;
        auto [from, to] = given(work, r);
        fine = work.kind == ALLTOALL ? swap_reached(work, r) : copy_all(r, from, work.x + from, to - from);
    }
    if (!barrier()) {
        settle();
        return STALLED;
    }
    return fine ? DONE : UNREACHED;
}

// Each piece of this rank's chunk is fetched into a scratch that fits the cache, folded, and written back to all.
bool Node::fold_reached(const Work& work) {
    auto [first, last] = chunk(work.n, size_, rank_);
    const std::size_t itemsize = work.itemsize, step = kReach / itemsize;
    scratch_.resize(std::size_t(size_) * kReach);
    bool fine = true;
    for (std::size_t at = first; at < last && fine; at += step) {
        const std::size_t count = std::min(step, last - at), bytes = count * itemsize;
        for (int r = 0; r < size_; ++r) {
            arrays_[r] = r == rank_ ? work.x + at * itemsize : scratch_.data() + std::size_t(r) * kReach;
            if (r != rank_) fine = fine && copy_from(r, at * itemsize, arrays_[r], bytes);
        }
        void* out = work.x + at * itemsize;
        fold_ranks(work.type, work.op, &out, 1, arrays_.data(), size_, work.divisor, 0, count);
        for (int r = 0; r < size_ && work.kind == ALLREDUCE; ++r)
            if (r != rank_) fine = fine && copy_to(r, at * itemsize, out, bytes);
    }
    return fine;
}

bool Node::swap_reached(const Work& work, int rank) {
    scratch_.resize(std::max(scratch_.size(), kReach));
    auto [from, to] = swapped(work, rank);
    for (std::size_t at = from; at < to; at += kReach) {
        const std::size_t bytes = std::min(kReach, to - at), there = rank_ * row(work) + at;
        unsigned char* mine = work.x + rank * row(work) + at;
        if (!copy_from(rank, there, scratch_.data(), bytes) || !copy_to(rank, there, mine, bytes)) return false;
        std::memcpy(mine, scratch_.data(), bytes);
    }
    return true;
}

bool Node::copy_from(int rank, std::size_t offset, void* out, std::size_t bytes) const {
#if defined(__linux__)
    const std::uint64_t address = announced(rank).address + offset;
    iovec here{out, bytes}, there{reinterpret_cast<void*>(address), bytes};
    return process_vm_readv(pid_t(desk(rank).pid), &here, 1, &there, 1, 0) == ssize_t(bytes);
#else
    return false;
#endif
}

bool Node::copy_to(int rank, std::size_t offset, const void* x, std::size_t bytes) const {
#if defined(__linux__)
    const std::uint64_t address = announced(rank).address + offset;
    iovec here{const_cast<void*>(x), bytes}, there{reinterpret_cast<void*>(address), bytes};
    return process_vm_writev(pid_t(desk(rank).pid), &here, 1, &there, 1, 0) == ssize_t(bytes);
#else
    return false;
#endif
}

// copy_from without the kernel's limit of 2 GiB a call.
bool Node::copy_all(int rank, std::size_t offset, unsigned char* out, std::size_t bytes) const {
    constexpr std::size_t most = std::size_t(1) << 30;
    bool fine = true;
    for (std::size_t at = 0; at < bytes && fine; at += most) fine = copy_from(rank, offset + at, out + at, std::min(most, bytes - at));
    return fine;
}

// Private arrays go through the desks in segments that fit the cache: copy in, barrier, fold or copy from all desks into my
// array. has_first: each rank has put its first segment before the barrier of the call, which serves for that segment too.
Status Node::staged(const Work& work, bool has_first) {
    const std::size_t end = longest(work);
    for (std::size_t at = 0; at < end; at += step(work)) {
        if (at > 0 || !has_first) {
            put(work, at);
            if (!barrier()) return STALLED;
        }
        if (!work.reduces()) take(work, at);
        else if (!fold_staged(work, at)) return STALLED;
        used(segment_bytes(work, at));
    }
    return DONE;
}

// The bytes that go through a desk at most (for each other rank, in an all-to-all).
std::size_t Node::longest(const Work& work) const {
    if (work.kind == ALLTOALL) return row(work);
    return work.kind == ALLGATHER ? (work.n + unsigned(size_) - 1) / unsigned(size_) * work.itemsize : work.bytes();
}

std::size_t Node::segment_bytes(const Work& work, std::size_t at) const {
    return std::min(step(work), longest(work) - at) * (work.kind == ALLTOALL ? unsigned(size_) : 1u);
}

// Where the next segment begins, in each desk: behind the one before, which others may still read, else at the start of the ring.
// That is three times as long as a segment, so that the start is not in use. Lines that another core has in its first-level cache
// take long to be written, so that short segments go round the ring too.
std::size_t Node::next(std::size_t bytes) const {
    const std::size_t begin = (ring_end_ + 127) / 128 * 128;
    return begin + bytes <= kRing ? begin : 0;
}

// A rank's next segment. Of two ranks each claims the lines that it reads, and writes its own segments there in the next lap: a line
// crosses between the cores once for each message, where it would be read by one and then be taken back by the other.
unsigned char* Node::segment(int rank, std::size_t bytes) const {
    const std::size_t begin = next(bytes);
    const bool swapped = claims() && swapped_ != (begin == 0 && ring_end_ > 0);
    return desk(swapped ? 1 - rank : rank).ring + begin;
}

// After a segment was read here, on all ranks alike. A rank that writes the next but one has come to a barrier after all had read
// this one.
void Node::used(std::size_t bytes) {
    const std::size_t begin = next(bytes);
    if (begin == 0 && ring_end_ > 0) swapped_ = !swapped_;
    ring_end_ = begin + bytes;
}

// Fold bytes from `from` to `to` of arrays_, of which the others' are segments.
void Node::fold_segments(const Work& work, void* const* outs, int n_outs, std::size_t from, std::size_t to) const {
    const auto fold = [&](std::size_t a, std::size_t b) {
        fold_ranks(work.type, work.op, outs, n_outs, arrays_.data(), size_, work.divisor, a / work.itemsize, b / work.itemsize);
    };
    if (!claims()) return fold(from, to);
    const auto* theirs = static_cast<const unsigned char*>(arrays_[1 - rank_]);
    claim(theirs + from, std::min(kClaim, to - from));
    for (std::size_t at = from; at < to; at += kClaim) {
        if (at + kClaim < to) claim(theirs + at + kClaim, std::min(kClaim, to - at - kClaim));
        fold(at, std::min(at + kClaim, to));
    }
}

// Copy into this rank's segment what the others need of its array, from byte `at` of that on (of each row, in an all-to-all).
void Node::put(const Work& work, std::size_t at) {
    const std::size_t bytes = segment_bytes(work, at);
    unsigned char* to_all = segment(rank_, bytes);
    if (work.kind == ALLTOALL) {
        const std::size_t count = bytes / unsigned(size_);
        for (int r = 0; r < size_; ++r)
            if (r != rank_) std::memcpy(to_all + r * count, work.x + r * row(work) + at, count);
        return;
    }
    auto [from, to] = given(work, rank_);
    from = std::min(from + at, to);
    to = std::min(from + kSegment, to);
    auto [kept, end] = folded_here(work, at);  // which nobody else needs
    if (kept < end) {
        std::memcpy(to_all, work.x + from, kept);
        std::memcpy(to_all + end, work.x + from + end, to - from - end);
    } else {
        std::memcpy(to_all, work.x + from, to - from);
    }
}

// The bytes of the segment from byte `at` on that this rank alone folds: its chunk of the array, or where many ranks share the work
// its chunk of the segment. None where each rank folds all.
std::pair<std::size_t, std::size_t> Node::folded_here(const Work& work, std::size_t at) const {
    const std::size_t begin = at / work.itemsize, count = segment_bytes(work, at) / work.itemsize;
    std::pair<std::size_t, std::size_t> own{0, 0};
    if (work.kind == REDUCE_SCATTER) {
        own = chunk(work.n, size_, rank_);
        own = {std::clamp(own.first, begin, begin + count) - begin, std::clamp(own.second, begin, begin + count) - begin};
    } else if (shares_folds(work)) {
        own = chunk(count, size_, rank_);
    }
    return {own.first * work.itemsize, own.second * work.itemsize};
}

// Copy from the others' segments what they put there for this rank.
void Node::take(const Work& work, std::size_t at) {
    const std::size_t bytes = segment_bytes(work, at);
    const auto copy = [&](unsigned char* out, const unsigned char* x, std::size_t count) {
        if (claims()) copy_claiming(out, x, count);
        else std::memcpy(out, x, count);
    };
    for (int ahead = 1; ahead < size_; ++ahead) {
        const int r = (rank_ + ahead) % size_;
        const unsigned char* theirs = segment(r, bytes);
        if (work.kind == ALLTOALL) {
            const std::size_t count = bytes / unsigned(size_);
            copy(work.x + r * row(work) + at, theirs + rank_ * count, count);
        } else if (auto [from, to] = given(work, r); from + at < to) {
            copy(work.x + from + at, theirs, std::min(kSegment, to - from - at));
        }
    }
}

// Few ranks each fold the whole segment. Of more, each folds its chunk of the segment in its own desk, for the others to copy.
bool Node::fold_staged(const Work& work, std::size_t at) {
    const std::size_t bytes = segment_bytes(work, at), itemsize = work.itemsize;
    unsigned char* mine = work.x + at;
    for (int r = 0; r < size_; ++r) arrays_[r] = r == rank_ ? mine : segment(r, bytes);
    const bool shared = shares_folds(work);
    auto [from, to] = work.kind == ALLREDUCE && !shared ? std::pair{std::size_t(0), bytes} : folded_here(work, at);
    void* outs[] = {mine, segment(rank_, bytes)};
    if (from < to) fold_segments(work, outs, shared ? 2 : 1, from, to);
    if (!shared) return true;
    if (!barrier()) return false;
    for (int ahead = 1; ahead < size_; ++ahead) {
        const int r = (rank_ + ahead) % size_;
        auto [a, b] = chunk(bytes / itemsize, size_, r);
        std::memcpy(mine + a * itemsize, segment(r, bytes) + a * itemsize, (b - a) * itemsize);
    }
    return true;
}

}  // namespace hpcai::cpu
