#include "pmix-hooks/ranks/rank_agent.h"

#include <chrono>
#include <csignal>
#include <utility>

namespace symvirt::hooks {

bool RankAgent::start() {
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  const int error = pthread_create(&thread_, nullptr, &RankAgent::run_thread, this);
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  running_ = error == 0;
  if (running_) pthread_setname_np(thread_, "symvirt");
  return running_;
}

void RankAgent::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    changed_.notify_all();
  }
  if (std::exchange(running_, false)) pthread_join(thread_, nullptr);
}

void RankAgent::mute(int wait_ms) {
  std::unique_lock lock(mutex_);
  stopping_ = true;
  changed_.notify_all();
  changed_.wait_for(lock, std::chrono::milliseconds(wait_ms), [this] { return !serving_; });
}

void RankAgent::deliver(int code, std::string message) {
  const std::lock_guard lock(mutex_);
  if (stopping_) return;
  queue_.push_back({code, std::move(message)});
  changed_.notify_all();
}

void RankAgent::say_immovable(const std::string& why) {
  deliver(kEventHello, encode_presence(pid_, why));
}

bool RankAgent::await_peers(int wait_ms) {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, std::chrono::milliseconds(wait_ms),
                           [this] { return stopping_ || peers_known_; });
}

void* RankAgent::run_thread(void* self) {
  static_cast<RankAgent*>(self)->run();
  return nullptr;
}

void RankAgent::run() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return stopping_ || !queue_.empty(); });
    if (stopping_) return;
    const Event event = std::move(queue_.front());
    queue_.pop_front();
    serving_ = true;
    if (event.code == kEventQuiesce) peers_known_ = false;
    lock.unlock();
    serve(event);
    lock.lock();
    serving_ = false;
    if (event.code == kEventPeers) peers_known_ = true;
    changed_.notify_all();
  }
}

void RankAgent::serve(const Event& event) {
  if (event.code == kEventHello) {  // from this process itself
    link_.send(event.code, event.message);
    return;
  }
  const Result<Command> command = parse_command(event.message);
  if (!command)
    return;  // no way to answer what cannot be read; the server names this rank at its deadline
  if (event.code == kEventPeers) return transport_.peers(command->payloads);
  const bool repeated = last_answer_ && last_code_ == event.code &&
                        last_answer_->epoch == command->epoch &&
                        last_answer_->round == command->round;
  if (!repeated) {
    last_answer_ = answer_for(event.code, *command);
    last_code_ = event.code;
  }
  link_.send(kEventAnswer, encode_answer(*last_answer_));
}

Answer RankAgent::answer_for(int code, const Command& command) {
  Answer answer{command.epoch, command.round, pid_, AnswerState::kMore, {}};
  const bool quiesce = code == kEventQuiesce;
  TransportAnswer result = quiesce
                               ? transport_.quiesce(command.epoch, command.round, command.payloads,
                                                    command.device_leaves)
                               : transport_.resume(command.epoch, command.round, command.payloads);
  if (!result.more) answer.state = quiesce ? AnswerState::kRest : AnswerState::kDone;
  answer.payload = std::move(result.payload);
  answer.why = std::move(result.why);
  return answer;
}

}  // namespace symvirt::hooks
