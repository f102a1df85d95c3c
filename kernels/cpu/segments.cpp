// The way of a collective through segments of shared memory, for arrays in private memory.
#include <algorithm>
#include <cstring>

#include "node.hpp"

namespace hpcai::cpu {
namespace {

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
    if (work.kind == ALLGATHER) return part(work, rank);
    return {0, work.kind == BROADCAST && rank != work.root ? 0 : work.bytes()};
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

// The bytes that go through a desk (for each other rank, where each gets something else).
std::size_t Node::longest(const Work& work) const {
    if (!work.to_each() && work.kind != ALLGATHER) return work.bytes();
    return (work.n + unsigned(size_) - 1) / unsigned(size_) * work.itemsize;
}

std::size_t Node::segment_bytes(const Work& work, std::size_t at) const {
    return std::min(step(work), longest(work) - at) * (work.to_each() ? unsigned(size_) : 1u);
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

// Copy into this rank's segment what the others need of its array: from byte `at` on, of the part for each where these differ.
void Node::put(const Work& work, std::size_t at) {
    const std::size_t bytes = segment_bytes(work, at), each = bytes / unsigned(size_);
    unsigned char* mine = segment(rank_, bytes);
    if (work.to_each()) {
        for (int r = 0; r < size_; ++r)
            if (auto [from, to] = part(work, r); r != rank_ && from + at < to)
                std::memcpy(mine + r * each, work.x + from + at, std::min(each, to - from - at));
        return;
    }
    auto [from, to] = given(work, rank_);
    from = std::min(from + at, to);
    to = std::min(from + kSegment, to);
    auto [kept, end] = folded_here(work, at);  // which nobody else needs
    std::memcpy(mine, work.x + from, kept < end ? kept : to - from);
    if (kept < end) std::memcpy(mine + end, work.x + from + end, to - from - end);
}

// The bytes of the segment from byte `at` on that this rank alone folds, where many ranks share the work; none where each folds all.
std::pair<std::size_t, std::size_t> Node::folded_here(const Work& work, std::size_t at) const {
    if (!shares_folds(work)) return {0, 0};
    auto [from, to] = chunk(segment_bytes(work, at) / work.itemsize, size_, rank_);
    return {from * work.itemsize, to * work.itemsize};
}

// Copy from the others' segments what they put there for this rank.
void Node::take(const Work& work, std::size_t at) {
    const std::size_t bytes = segment_bytes(work, at), each = bytes / unsigned(size_);
    for (int ahead = 1; ahead < size_; ++ahead) {
        const int r = (rank_ + ahead) % size_;
        auto [from, to] = work.kind == ALLTOALL ? part(work, r) : given(work, r);
        if (from + at >= to) continue;
        const unsigned char* theirs = segment(r, bytes) + (work.kind == ALLTOALL ? rank_ * each : 0);
        const std::size_t count = std::min(step(work), to - from - at);
        if (claims()) copy_claiming(work.x + from + at, theirs, count);
        else std::memcpy(work.x + from + at, theirs, count);
    }
}

// Few ranks each fold the whole segment. Of more, each folds its chunk of the segment in its own desk, for the others to copy.
bool Node::fold_staged(const Work& work, std::size_t at) {
    const std::size_t bytes = segment_bytes(work, at), each = bytes / unsigned(size_);
    auto [first, last] = work.to_each() ? part(work, rank_) : std::pair{std::size_t(0), work.bytes()};
    if (first + at >= last) return true;
    unsigned char* mine = work.x + first + at;
    for (int r = 0; r < size_; ++r) arrays_[r] = r == rank_ ? mine : segment(r, bytes) + (work.to_each() ? rank_ * each : 0);
    const bool shared = shares_folds(work);
    auto [from, to] = shared ? folded_here(work, at) : std::pair{std::size_t(0), std::min(step(work), last - first - at)};
    void* outs[] = {mine, segment(rank_, bytes)};
    if (from < to) fold_segments(work, outs, shared ? 2 : 1, from, to);
    if (!shared) return true;
    if (!barrier()) return false;
    for (int ahead = 1; ahead < size_; ++ahead) {
        const int r = (rank_ + ahead) % size_;
        auto [a, b] = chunk(bytes / work.itemsize, size_, r);
        std::memcpy(mine + a * work.itemsize, segment(r, bytes) + a * work.itemsize, (b - a) * work.itemsize);
    }
    return true;
}

}  // namespace hpcai::cpu
