"""Sparse networks in files and other formats: bits, N:M, sparse arrays, safetensors.

Masks as bits: `pack`, `unpack`. N:M: `compress_nm`, `decompress_nm`. Sparse arrays of JAX:
`to_bcoo`, `to_bcsr` (a `TransposedBCSR` in place of a matrix), `to_dense`, and `sparse_matmul`.
Files: `save_tensors`, `load_tensors`.
"""

from jaxprune.export.bits import pack as pack
from jaxprune.export.bits import unpack as unpack
from jaxprune.export.nm import compress_nm as compress_nm
from jaxprune.export.nm import decompress_nm as decompress_nm
from jaxprune.export.sparse import TransposedBCSR as TransposedBCSR
from jaxprune.export.sparse import sparse_matmul as sparse_matmul
from jaxprune.export.sparse import to_bcoo as to_bcoo
from jaxprune.export.sparse import to_bcsr as to_bcsr
from jaxprune.export.sparse import to_dense as to_dense
from jaxprune.export.tensors import load_tensors as load_tensors
from jaxprune.export.tensors import save_tensors as save_tensors
