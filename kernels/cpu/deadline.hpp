// Ends this process after a time, unless it is called off before. It needs no turn of Python's.
#pragma once

#include <unistd.h>

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>

namespace hpcai::cpu {

class Deadline {
public:
    Deadline(double seconds, int code, std::string words)
        : thread_([this, wait = std::chrono::duration<double>(seconds), code, words = std::move(words)] {
              std::unique_lock lock(mutex_);
              if (changed_.wait_for(lock, wait, [this] { return off_; })) return;
              if (::write(STDERR_FILENO, words.data(), words.size()) < 0) {}  // nobody is left to be told
              ::_exit(code);
          }) {}

    ~Deadline() { call_off(); }

    void call_off() {
        {
            std::lock_guard lock(mutex_);
            off_ = true;
        }
        changed_.notify_all();
        if (thread_.joinable()) thread_.join();
    }

private:
    std::mutex mutex_;
    std::condition_variable changed_;
    bool off_ = false;
    std::thread thread_;
};

}  // namespace hpcai::cpu
