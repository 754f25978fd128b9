"""One plan with two drivers: what does the client library cost?"""
