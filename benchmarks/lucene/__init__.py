"""`mapseek bench lucene`: exact and approximate search in Apache Lucene, as Atlas uses it."""
