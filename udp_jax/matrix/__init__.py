"""The matrix of protections x purifiers x threats x metrics: what survives purification?"""
