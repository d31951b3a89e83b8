// SPDX-License-Identifier: Apache-2.0
// The top function: its arguments are the ports and registers of hls/interface.json.
#pragma once

#include <cstdint>

extern "C" void bbs_engine(
    const uint64_t* program, const uint64_t* weights, const uint64_t* indices,
    const uint64_t* activations, const uint64_t* residuals, uint64_t* results,
    uint32_t memory_words, uint32_t first_command, uint32_t command_count, uint32_t* status,
    uint32_t* completed, uint32_t* version, uint32_t* lanes, uint32_t* rows, uint32_t* cols,
    uint32_t* requant_units, uint32_t* taps, uint32_t* vector_words, uint32_t* block_words,
    uint32_t* queue_words, uint32_t* block_rows, uint32_t* sum_words, uint32_t* image_words,
    uint32_t* chain_words, uint32_t* fabric_lanes, uint32_t* index_bits,
    uint32_t* cell_words);
