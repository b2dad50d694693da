"""Measurements that anyone can repeat: latency, throughput, memory and retrieval quality."""
