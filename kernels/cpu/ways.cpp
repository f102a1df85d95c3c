// The ways of a collective that copy nothing: with the call, straight in symmetric arrays, or by system calls into private memory.
// They and the way through segments fold in the order of the ranks, so that all come to the same bytes.
#include "node.hpp"

#if defined(__linux__)
#include <sys/uio.h>
#endif

#include <algorithm>
#include <cstring>

namespace hpcai::cpu {
namespace {

void swap(unsigned char* a, unsigned char* b, std::size_t bytes) {
    unsigned char held[4096];
    for (std::size_t at = 0; at < bytes; at += sizeof held) {
        const std::size_t count = std::min(sizeof held, bytes - at);
        std::memcpy(held, a + at, count);
        std::memcpy(a + at, b + at, count);
        std::memcpy(b + at, held, count);
    }
}

constexpr std::size_t kMost = std::size_t(1) << 30;

}  // namespace

// The bytes of an array that are a rank's own: its row in an all-to-all, else its chunk.
std::pair<std::size_t, std::size_t> Node::part(const Work& work, int rank) const {
    auto [from, to] = chunk(work.n, size_, rank);  // rows are as long as each other
    return {from * work.itemsize, to * work.itemsize};
}

// Two ranks swap a row of an all-to-all, each one half of it: the bytes of the row that this rank swaps with `rank`.
std::pair<std::size_t, std::size_t> Node::swapped(const Work& work, int rank) const {
    const std::size_t whole = longest(work), half = whole / 2;
    return rank_ < rank ? std::pair{std::size_t(0), half} : std::pair{half, whole};
}

// The bytes of a broadcast that the root writes into a rank's array, while the rank fetches the rest: so all work alike.
std::pair<std::size_t, std::size_t> Node::pushed(const Work& work, int rank) const {
    return rank == work.root ? std::pair{std::size_t(0), std::size_t(0)} : part(work, work.root);
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
        if (work.kind == ALLTOALL) {
            auto [from, to] = swapped(work, r);
            swap(mine + part(work, r).first + from, theirs + part(work, rank_).first + from, to - from);
        } else if (work.kind == ALLGATHER) {
            auto [from, to] = part(work, r);
            std::memcpy(mine + from, theirs + from, to - from);
        } else if (rank_ == work.root) {
            auto [from, to] = pushed(work, r);
            std::memcpy(theirs + from, mine + from, to - from);
        } else if (r == work.root) {
            auto [from, to] = pushed(work, rank_);
            std::memcpy(mine, theirs, from);
            std::memcpy(mine + to, theirs + to, work.bytes() - to);
        }
    }
    return barrier() ? DONE : STALLED;
}

// Arrays in private memory, where the kernel lets ranks copy from and to each other's: as `direct`. Nothing is copied twice, and
// an element is always touched by the same core, which its next reduction finds in that core's cache.
Status Node::reached(const Work& work) {
    bool fine = !work.reduces() || fold_reached(work);
    for (int step = 1; step < size_ && !work.reduces() && fine; ++step) {
        const int r = (rank_ + step) % size_;
        if (work.kind == ALLTOALL) fine = swap_reached(work, r);
        else if (work.kind == ALLGATHER) fine = copy_all(r, part(work, r), work.x);
        else if (rank_ == work.root) fine = copy_all_to(r, pushed(work, r), work.x);
        else if (auto [from, to] = pushed(work, rank_); r == work.root)
            fine = copy_all(r, {0, from}, work.x) && copy_all(r, {to, work.bytes()}, work.x);
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
        const std::size_t bytes = std::min(kReach, to - at), there = part(work, rank_).first + at;
        unsigned char* mine = work.x + part(work, rank).first + at;
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

// The bytes of a range from and to the same place in another rank's array, without the kernel's limit of 2 GiB a call.
bool Node::copy_all(int rank, std::pair<std::size_t, std::size_t> range, unsigned char* x) const {
    bool fine = true;
    for (std::size_t at = range.first; at < range.second && fine; at += kMost)
        fine = copy_from(rank, at, x + at, std::min(kMost, range.second - at));
    return fine;
}

bool Node::copy_all_to(int rank, std::pair<std::size_t, std::size_t> range, const unsigned char* x) const {
    bool fine = true;
    for (std::size_t at = range.first; at < range.second && fine; at += kMost)
        fine = copy_to(rank, at, x + at, std::min(kMost, range.second - at));
    return fine;
}

}  // namespace hpcai::cpu
