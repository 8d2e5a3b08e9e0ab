/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Memory that others write while we read, and the words that belong to one epoch. */
#pragma once
#include "contract.h"

#define READ_ONCE(x)        (*(volatile typeof(x) *)&(x))
#define WRITE_ONCE(x, v)    (*(volatile typeof(x) *)&(x) = (v))
#define ADD(x, v)           __sync_fetch_and_add(&(x), (v))
#define CMPXCHG(x, was, is) __sync_val_compare_and_swap(&(x), (was), (is))

/* The word valid in epoch; false when neither slot is, or the writer got in between. */
static __always_inline int slots_read(struct slots *s, __u64 epoch, __u64 *word)
{
	__u64 a = READ_ONCE(s->since[0]), b = READ_ONCE(s->since[1]);

	if (a <= epoch && (b > epoch || a >= b)) {
		*word = READ_ONCE(s->word[0]);
		return READ_ONCE(s->since[0]) == a;
	}
	if (b > epoch)
		return 0;
	*word = READ_ONCE(s->word[1]);
	return READ_ONCE(s->since[1]) == b;
}

/* A mix of two words; stands for a key where an entry may be recycled under its reader. */
static __always_inline __u64 mix(__u64 h, __u64 v)
{
	h ^= v;
	h *= 0xff51afd7ed558ccdULL;
	return h ^ (h >> 29);
}

static __always_inline int same_address(const __u8 *a, const __u8 *b)
{
	const __u64 *x = (const __u64 *)a, *y = (const __u64 *)b;

	return x[0] == y[0] && x[1] == y[1];
}
