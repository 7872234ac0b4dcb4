"""Forms of a kernel whose product may be faster than the dense one; `fast` times them.

A form is a pytree in the place of the kernel. `candidates` makes the forms of a matrix that its
mask allows; these have a method `multiply(x, **how)`, (n, in) -> (n, out). `of_window` makes the
forms of a convolution with a window, with a method `convolve(image, **how)`.
"""

from jaxprune.fast.forms.candidates import FORMS as FORMS
from jaxprune.fast.forms.candidates import Candidate as Candidate
from jaxprune.fast.forms.candidates import candidates as candidates
from jaxprune.fast.forms.candidates import of_window as of_window
