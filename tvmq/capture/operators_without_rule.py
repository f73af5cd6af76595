"""What is said of an operator that no rule writes: in words what it does, and what to do instead.

By name of the operator, for what networks of vision are full of; ``refusal_of`` has an answer for
any other.
"""

from __future__ import annotations

from targets.refusal import Refusal

_END = "At the network's end it stays in float; in its middle, leave it out"
_CUT = "Export the layers before and behind it as networks of their own, and compute it between"
_FIXED = "Normalize by constants, as batch norm does in evaluation mode, and train with that"
_CONVOLUTION = "Write it as convolutions"

_QUANTIZED = ("quantized_decomposed", "quantized", "torchao")
QUANTIZING = tuple(f"torch.ops.{library}." for library in _QUANTIZED)
"""How the operators of quantized programs are called in their files."""
QUANTIZED_ALREADY = Refusal(
    "the program is quantized already, as PT2E and torchao do it",
    "Export the float network, before anything is prepared or converted; tvmq quantizes it itself",
)

_ANSWERS: dict[str, tuple[str, str]] = {}


def _say(names: str, what: str, advice: str) -> None:
    _ANSWERS.update(dict.fromkeys(names.split(), (what, advice)))


_say(
    "log_softmax _log_softmax",
    "the logarithm of a softmax depends on sums of exponentials",
    _END,
)
_say(
    "local_response_norm norm",
    "it divides by a statistic of each image",
    _FIXED,
)
_say(
    "std var std_mean var_mean _euclidean_dist cdist cosine_similarity cumsum cumprod logcumsumexp "
    "prod logsumexp median mode histc",
    "it reduces a tensor otherwise than by a mean, a sum or a maximum",
    _END,
)
_say(
    "baddbmm einsum bilinear dot mv ger outer _trilinear",
    "it multiplies tensors along axes of its own choice",
    "Where one of the two is constant, use nn.Linear or a 1x1 nn.Conv2d; otherwise torch.matmul",
)
_say(
    "lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell",
    "a recurrent layer goes through its input step by step",
    "Use convolutions over time, or run the recurrent layer outside of the exported network",
)
_say(
    "embedding embedding_bag one_hot",
    "it looks rows up by integer indices",
    "Look them up before the network, and let it take the floats",
)
_say(
    "conv3d",
    "only convolutions of one and two dimensions can be quantized",
    "Write it as nn.Conv2d of images that hold the third axis in their channels",
)
_say(
    "conv_transpose3d",
    "only transposed convolutions of one and two dimensions can be quantized",
    "Write it as nn.ConvTranspose2d of images that hold the third axis in their channels",
)
_say(
    "avg_pool3d max_pool3d adaptive_avg_pool3d adaptive_max_pool3d max_pool3d_with_indices "
    "fractional_max_pool2d max_unpool2d",
    "only pooling of fixed windows of one and two dimensions can be quantized",
    "Write it as nn.AvgPool2d or nn.MaxPool2d",
)
_say(
    "upsample_nearest3d upsample_trilinear3d _upsample_bilinear2d_aa _upsample_bicubic2d_aa "
    "grid_sampler grid_sampler_2d grid_sampler_3d affine_grid_generator",
    "it resamples an image along three axes, at places of its own, or with averages between",
    _CUT,
)
_say(
    "repeat",
    "it repeats values",
    "Use torch.cat of the tensor with itself",
)
_say(
    "topk sort argsort argmax argmin max_pool2d_with_indices unique _unique2 nonzero kthvalue "
    "searchsorted bucketize msort aminmax",
    "it gives positions, or an order",
    _END,
)
_say(
    "gather take take_along_dim scatter scatter_add scatter_reduce index_put index_add index_copy "
    "masked_select masked_scatter select_scatter",
    "it reads or writes at indices",
    "Use slices and torch.cat; what depends on computed indices belongs outside of the network",
)
_say(
    "tril triu heaviside logical_and logical_or logical_not bitwise_and "
    "bitwise_or bitwise_not gt lt ge le eq ne isnan isinf",
    "it selects by a mask",
    "Use relu, clamp or another function of one tensor; a mask that is constant is a factor per "
    "channel",
)
_say(
    "rot90 im2col col2im unfold diagonal as_strided",
    "it puts values in another order",
    "Use slices, torch.cat, reshape and permute, or do it outside of the network",
)
_say(
    "maximum minimum fmax fmin",
    "it compares two tensors",
    "max(x, y) is y + relu(x - y)",
)
_say(
    "pow atan2 hypot copysign remainder fmod xlogy addcdiv lerp",
    "it is a function of two tensors, element by element",
    "Write it as sums, differences and products of the two and functions of one, such as "
    "x + w * (y - x)",
)
_say(
    "rand rand_like randn randn_like randint normal bernoulli multinomial rand_like randperm",
    "it draws random numbers",
    "Export model.eval(), and leave noise to the training",
)
_say(
    "zeros ones full empty empty_like arange eye linspace scalar_tensor "
    "new_zeros new_ones new_full tensor",
    "it makes a tensor that is no weight",
    "Register the tensor as a buffer of its module, of the shape for one image",
)
_say(
    "fft_fft fft_ifft fft_rfft fft_irfft fft_fft2 fft_ifft2 fft_rfft2 fft_irfft2 fft_fftn "
    "fft_rfftn fft_irfftn _fft_c2r _fft_r2c _fft_c2c stft istft view_as_real view_as_complex "
    "complex polar",
    "it computes in complex numbers",
    "A transform of fixed size is a product with a constant matrix: write it as nn.Linear or do it "
    "outside of the network",
)


def refusal_of(name: str) -> Refusal:
    """Why an operator is refused, and what to do.

    Args:
        name: of the operator, without namespace and overload for ATen's, such as ``softmax``.
    """
    if "::" in name:
        if name.partition("::")[0] in _QUANTIZED:
            return QUANTIZED_ALREADY
        return Refusal(
            f"{name} is an operator of another library than torch",
            "Write it in torch's own operators on tensors, and export again",
        )
    if name in _ANSWERS:
        return Refusal(*_ANSWERS[name])
    return Refusal(
        "there is no rule how to quantize it",
        f"{_CONVOLUTION}, dense layers, pooling, additions, concatenations, slices and functions "
        f"of one tensor; or {_CUT[0].lower()}{_CUT[1:]}",
    )
