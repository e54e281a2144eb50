"""The matrix of protections x purifiers x threats x metrics: which effects survive purification?"""
