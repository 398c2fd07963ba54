// All kernels with planted bugs, by name.
#pragma once

#include "barriers.cuh"
#include "collectives.cuh"
#include "copies.cuh"
#include "memory.cuh"

namespace bico::planted {

struct Kernel {
  const char* name;
  void (*correct)(const float* in, float* out);
  void (*broken)(const float* in, float* out);
  int results = threads;
};

#define BICO_PLANTED(kernel) #kernel, kernel<false>, kernel<true>
inline const Kernel kernels[] = {
    {BICO_PLANTED(read_without_barrier)},
    {BICO_PLANTED(overwrite_without_barrier)},
    {BICO_PLANTED(overwrite_by_last_lane)},
    {BICO_PLANTED(two_writers)},
    {BICO_PLANTED(no_barrier_within_warp)},
    {BICO_PLANTED(sync_warp_between_warps)},
    {BICO_PLANTED(skipped_barrier)},
    {BICO_PLANTED(exit_before_barrier)},
    {BICO_PLANTED(barriers_of_two_kinds)},
    {BICO_PLANTED(named_barrier_of_two_counts)},
    {BICO_PLANTED(named_barriers_mixed_up)},
    {BICO_PLANTED(named_barrier_of_half_warps)},
    {BICO_PLANTED(named_barrier_of_no_number)},
    {BICO_PLANTED(producer_and_consumer), 128},
    {BICO_PLANTED(copy_not_waited_for)},
    {BICO_PLANTED(copy_not_committed)},
    {BICO_PLANTED(copy_of_another_group)},
    {BICO_PLANTED(copied_without_barrier)},
    {BICO_PLANTED(barrier_before_the_wait)},
    {BICO_PLANTED(copy_over_what_is_read)},
    {BICO_PLANTED(store_where_a_copy_arrives)},
    {BICO_PLANTED(copy_pending_at_the_end)},
    {BICO_PLANTED(copy_of_too_many_bytes)},
    {BICO_PLANTED(divergent_collectives)},
    {BICO_PLANTED(shuffle_of_some_lanes)},
    {BICO_PLANTED(shuffle_for_sync_warp)},
    {BICO_PLANTED(swapped_quarters_of_left_operand), 256},
    {BICO_PLANTED(right_operand_not_transposed), 256},
    {BICO_PLANTED(shared_write_past_the_end)},
    {BICO_PLANTED(shared_read_past_the_end)},
    {BICO_PLANTED(shared_read_of_nothing)},
    {BICO_PLANTED(misaligned_store)},
    {BICO_PLANTED(misaligned_matrix_row)},
    {BICO_PLANTED(misaligned_copy_to_shared)},
    {BICO_PLANTED(misaligned_copy_from_global)},
    {BICO_PLANTED(global_write_past_the_end)},
};
#undef BICO_PLANTED

}  // namespace bico::planted
