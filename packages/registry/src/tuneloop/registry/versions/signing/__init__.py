"""Signatures of versions' files, by the OpenSSF's model-signing: who signs, and whose signatures count.

`policy` is for everybody; what it asks of a key, a certificate or Sigstore stands in the module of that name.
"""
