"""`mapseek bench retrieval`: does the right map come first?"""
