// Collectives among ranks that address each other's memory: memory is the wire.
//
// Every rank owns a *desk* in shared memory: a counter of the barriers it has come to, the call that it is making, and a ring of
// segments through which ordinary arrays pass. Symmetric arrays, which every rank of the node can address, need no copy at all.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include "fold.hpp"

namespace hpcai::cpu {

#define HPCAI_KINDS(EACH) EACH(AGREE) EACH(ALLREDUCE) EACH(REDUCE_SCATTER) EACH(ALLGATHER) EACH(BROADCAST) EACH(ALLTOALL)
#define HPCAI_STATUSES(EACH) EACH(DONE) EACH(MISMATCH) EACH(STALLED) EACH(NOT_HERE) EACH(UNREACHED)
// A call in numbers, as `key` in hpcai/comm/call.py makes them.
#define HPCAI_KEY(EACH) EACH(VALID) EACH(KIND) EACH(COUNT) EACH(DTYPE) EACH(OPERATION) EACH(CHOICE) EACH(SHAPE) EACH(ALGORITHM)
enum Kind : int { HPCAI_KINDS(HPCAI_MEMBER) };
enum Status : int { HPCAI_STATUSES(HPCAI_MEMBER) };  // NOT_HERE: the short way of module.cpp leaves it to the long way
enum KeyField : int { HPCAI_KEY(HPCAI_MEMBER) kKey };

constexpr std::size_t kSmall = 8192;          // bytes of a message that travels with the call itself
constexpr std::size_t kShortest = 32;         // bytes of one that comes in the same cache line
constexpr std::size_t kTiny = 512;            // up to here it does so although it is symmetric: one barrier instead of two
constexpr std::size_t kSegment = 128 << 10;   // bytes of a segment, at most
constexpr std::size_t kRing = 3 * kSegment + 4096;
constexpr std::size_t kStaged = 8 << 20;      // bytes of a private array up to which segments are faster than system calls
constexpr std::size_t kReach = 64 << 10;      // bytes that are fetched from another rank's memory at a time
constexpr int kSlots = 2;
constexpr int kFew = 3;  // so many ranks fold all of a segment each, instead of a chunk each for all
constexpr int kPlaceBits = 40;  // a place is a block's id << 40 | an offset, so arrays have fewer than 2**40 bytes

// What a collective does, and this rank's array: n elements of `itemsize` bytes. Reductions want a `type` that fold_ranks knows.
struct Work {
    Kind kind;
    Type type;
    Op op;
    long divisor;
    int root;
    unsigned char* x;
    std::size_t n, itemsize;

    std::size_t bytes() const { return n * itemsize; }
    bool reduces() const { return kind == ALLREDUCE || kind == REDUCE_SCATTER; }
    bool to_each() const { return kind == ALLTOALL || kind == REDUCE_SCATTER; }  // each rank gets something else
};

// A rank's call, as the others see it, with the shortest messages in the same cache line. What processors fetch beside a line on
// which another rank spins is its neighbour in 128 bytes, so that one stays unused.
struct alignas(128) Announcement {
    std::atomic<std::uint32_t> arrivals;  // that of the desk, as soon as the rest is written
    std::uint64_t digest;                 // of the call's key: equal on all ranks, or the call is refused
    std::int64_t place;                   // of the array in the symmetric heap, or -1: equal on all ranks, or nothing is symmetric
    std::uint64_t address;                // of the array in its rank's own memory
    unsigned char shortest[kShortest];
};

struct alignas(64) Desk {
    alignas(64) std::atomic<std::uint32_t> arrivals;
    alignas(64) std::atomic<std::uint32_t> sleepers;
    std::atomic<std::uint32_t> revoked;  // by this rank: nobody shall wait here any longer
    std::atomic<std::uint32_t> out;      // this rank has left a collective half-way, and writes nothing any more
    alignas(64) std::int64_t pid;  // whose memory `address` means, and a word there to prove it
    std::uint64_t proof_address, proof;
    Announcement announced[kSlots];
    alignas(4096) unsigned char ring[kRing];
};

// Chunk `part` of n elements cut into `parts`: the same cut as hpcai.comm.algorithms.schedule.split.
inline std::pair<std::size_t, std::size_t> chunk(std::size_t n, int parts, int part) {
    const auto cut = [&](int i) { return std::size_t(__uint128_t(n) * unsigned(i) / unsigned(parts)); };
    return {cut(part), cut(part + 1)};
}

class Node {
public:
    // desks: `size` zeroed Desks in memory shared by all ranks. crowded: more ranks than cores, so yield early.
    Node(int rank, int size, void* desks, double timeout_s, bool crowded);
    ~Node();
    Node(const Node&) = delete;
    Node& operator=(const Node&) = delete;

    // A block of the symmetric heap: rank r's part begins at base + r * stride. Ids are equal on all ranks.
    void add_block(std::int64_t id, void* base, std::size_t stride);
    void remove_block(std::int64_t id);

    // Whether this rank may read and write the other ranks' memory by system call (Linux's cross-memory attach). All ranks
    // call prove() after a barrier that follows construction; reach(true) then, if all succeeded.
    bool prove() const;
    void reach(bool can) { reaches_ = can; }
    // Whether ranks that fall asleep can have the kernel make the fences of all others' arrivals (Linux's membarrier). All ranks
    // ask before they say so to all by rely_on_sleepers(true); else each arrival has a fence of its own.
    bool sleepers_can_fence() const;
    void rely_on_sleepers(bool all_can) { sleepers_fence_ = all_can; }
    // Private arrays of so many bytes that are reduced go through the segments even where they can be reached. Equal on all ranks.
    std::size_t staged_bytes = kStaged;

    Status agree(const std::int64_t* key);
    Status collective(const Work& work, const std::int64_t* key);
    // After STALLED: bit r is set for each rank (below 64) that has not come.
    std::vector<int> missing() const;
    // Notice from now on when another rank's process ends: its wait ends with STALLED. False where the kernel cannot tell.
    bool watch();
    // Ranks of this node whose processes have ended.
    std::vector<int> ended() const;
    // End all ranks' waits here, now and later, with STALLED. From any thread.
    void revoke() { desk(rank_).revoked.store(1, std::memory_order_seq_cst); }
    bool revoked() const;
    double timeout_s;
    // The thread, as Python numbers it, that may call without being looked at further; 0: none. Read and written under the GIL.
    unsigned long caller = 0;
    std::uint64_t short_calls = 0;  // that came the short way
    int size() const { return size_; }
    // How many messages this rank has under way, and what moves them: called in long waits, since others may wait for them.
    const std::int64_t* under_way = nullptr;
    std::function<void()> progress;
    // For benches, equal on all ranks: false leaves out what detection costs.
    bool checks = true;
    // When the present wait began (CLOCK_MONOTONIC; 0: there is none), and all waits beyond the spinning, in seconds.
    std::atomic<double> waiting_since{0}, waited_s{0};

private:
    struct Block { std::int64_t id; unsigned char* base; std::size_t stride; };
    Desk& desk(int rank) const { return desks_[rank]; }
    std::int64_t place_of(const void* x, std::size_t bytes) const;
    void* symmetric(std::int64_t place, int rank) const;
    void announce(const std::int64_t* key, std::int64_t place, const void* x, std::size_t shortest);
    Announcement& announced(int rank) const { return desk(rank).announced[calls_ % kSlots]; }
    bool same() const;
    bool all_symmetric() const;
    bool none_symmetric() const;
    bool barrier(bool announcing = false);
    bool spin(std::uint32_t target, bool announcing) const;
    const std::atomic<std::uint32_t>& word(int rank, bool announcing) const {
        return announcing ? announced(rank).arrivals : desk(rank).arrivals;
    }
    bool wait_for(int rank, std::uint32_t target, const std::atomic<std::uint32_t>& word);
    bool anyone_lost(std::uint32_t target) const;
    void settle() const;
    bool waited(double begin);

    Status small(const Work& work);
    Status direct(const Work& work, std::int64_t place);
    Status reached(const Work& work);
    bool fold_reached(const Work& work);
    bool swap_reached(const Work& work, int rank);
    bool copy_from(int rank, std::size_t offset, void* out, std::size_t bytes) const;
    bool copy_all(int rank, std::pair<std::size_t, std::size_t> range, unsigned char* x) const;
    bool copy_all_to(int rank, std::pair<std::size_t, std::size_t> range, const unsigned char* x) const;
    bool copy_to(int rank, std::size_t offset, const void* x, std::size_t bytes) const;
    std::pair<std::size_t, std::size_t> part(const Work& work, int rank) const;
    std::pair<std::size_t, std::size_t> given(const Work& work, int rank) const;
    std::pair<std::size_t, std::size_t> swapped(const Work& work, int rank) const;
    std::pair<std::size_t, std::size_t> pushed(const Work& work, int rank) const;
    std::size_t longest_staged(Kind kind) const;
    std::size_t longest(const Work& work) const;
    std::size_t step(const Work& work) const { return work.to_each() ? kSegment / unsigned(size_) / 64 * 64 : kSegment; }
    std::size_t segment_bytes(const Work& work, std::size_t at) const;
    std::size_t next(std::size_t bytes) const;
    unsigned char* segment(int rank, std::size_t bytes) const;
    void fold_segments(const Work& work, void* const* outs, int n_outs, std::size_t from, std::size_t to) const;
    bool claims() const { return size_ == 2; }
    void used(std::size_t bytes);
    bool travels(const Work& work) const { return work.kind == ALLREDUCE && work.bytes() <= kSmall; }
    bool shares_folds(const Work& work) const { return work.kind == ALLREDUCE && size_ > kFew && !travels(work); }
    std::pair<std::size_t, std::size_t> folded_here(const Work& work, std::size_t at) const;
    void put(const Work& work, std::size_t at);
    void take(const Work& work, std::size_t at);
    Status staged(const Work& work, bool has_first);
    bool fold_staged(const Work& work, std::size_t at);

    int rank_, size_;
    Desk* desks_;
    int spins_;
    std::uint32_t epoch_ = 0;
    unsigned calls_ = 0;
    std::size_t ring_end_ = 0;  // of the segment that was used last
    bool swapped_ = false;      // two ranks write into each other's rings, in this lap
    bool reaches_ = false, sleepers_fence_ = false;
    std::uint64_t proof_;
    std::vector<unsigned char> scratch_;
    std::vector<void*> arrays_;  // one of each rank, for a fold
    std::vector<Block> blocks_;
    std::vector<int> watched_;  // a descriptor of each other process, or -1
};

}  // namespace hpcai::cpu
