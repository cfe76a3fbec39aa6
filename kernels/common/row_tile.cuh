// row_tile.cuh — blocks over rows: each takes a tile of one row, or the same columns of several.
#pragma once

#include "pack.cuh"
#include <algorithm>

constexpr int kThreads = 128;
// Packs of a thread, where its row is one: all are loaded before the first is stored.
constexpr int kPacks = 4;

// Elements of a thread at a time: 16 bytes of the wider type, so that the accesses of a warp to both
// are whole sectors.
template <typename X, typename Y>
constexpr int kCount = 16 / std::max(sizeof(X), sizeof(Y));

// What a block works on: a tile of a row, from the column of its thread 0 on. The tiles of a row
// follow each other, blockIdx.x counts those of all rows.
struct Tile {
    long long row;
    int col;
};

__device__ __forceinline__ Tile tile_of(int cols, int width) {
    const int tiles = (cols - 1) / width + 1;
    return {(long long)(blockIdx.x / tiles), (int)(blockIdx.x % tiles) * width};
}

// Elements of a row that a block takes: of one row, of a list of rows.
template <typename X, typename Y>
constexpr int kTileOfRow = kPacks * kThreads * kCount<X, Y>;
template <typename X, typename Y>
constexpr int kTileOfRows = kThreads * kCount<X, Y>;

// store(col, load(col)) for every pack of this thread in a tile of one row.
template <typename X, typename Y, typename Load, typename Store>
__device__ __forceinline__ void for_tile(const Tile& tile, int cols, Load load, Store store) {
    const int first = tile.col + threadIdx.x * kCount<X, Y>;
    constexpr int kStep = kThreads * kCount<X, Y>;
    decltype(load(0)) kept[kPacks];
    int col = first;
    for (auto& pack : kept) {
        if (col < cols) pack = load(col);
        col += kStep;
    }
    col = first;
    for (const auto& pack : kept) {
        if (col < cols) store(col, pack);
        col += kStep;
    }
}
