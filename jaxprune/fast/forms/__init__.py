"""Forms of a kernel whose product may be faster than the dense one; `fast` times them.

A form is a pytree in the place of the kernel, with a method `multiply(x, **how)`, (n, in) ->
(n, out). `candidates` makes the forms of a kernel that its mask allows.
"""

from jaxprune.fast.forms.candidates import FORMS as FORMS
from jaxprune.fast.forms.candidates import Candidate as Candidate
from jaxprune.fast.forms.candidates import candidates as candidates
