# SPDX-License-Identifier: Apache-2.0
"""Where the operators of a built model run, read from the toolkit's verbose log."""

from __future__ import annotations

import pytest

from heqis_core.errors import EngineError
from heqis_training.convert.rknn_tool import Op, parse_placement
from heqis_training.convert.testing_convert import layer_log

RULE = 'D RKNN: [01:06:01.606] ' + '-' * 100
HEAD = (
    'D RKNN: [01:06:01.606] ID   OpType             DataType Target InputShape'
    '                               OutputShape            Cycles(DDR/NPU/Total)    RW(KB)       '
    'FullName        '
)
RECORDED = f"""I rknn-toolkit2 version: 2.5.0
I Loading : 100%|████████| 6/6 [00:00<00:00, 47934.90it/s]
D RKNN: [01:06:01.605] <<<<<<<< end: rknn::RKNNModelBuildPass
{RULE}
D RKNN: [01:06:01.606]                         Network Layer Information Table             \
{''}
{RULE}
{HEAD}
{RULE}
D RKNN: [01:06:01.606] 0    InputOperator      FLOAT16  CPU    \\                            \
            (64,23,1,16)           0/0/0                    0            InputOperator:window
D RKNN: [01:06:01.606] 1    Transpose          FLOAT16  CPU    (64,23,1,16)                   \
          (1,23,64,16)           0/0/0                    46           Transpose:window_tp
D RKNN: [01:06:01.606] 2    ConvRelu           FLOAT16  NPU    (1,23,64,16),(16,23,1,3),(16)  \
          (1,16,64,8)            10320/6144/10320         50           Conv:window_tp_conv
D RKNN: [01:06:01.606] 3    Conv               FLOAT16  NPU    (1,16,64,4),(4,16,1,4),(4)     \
          (1,4,64,1)             1408/256/1408            8            Conv:/layers/Relu_output_0
D RKNN: [01:06:01.606] 4    OutputOperator     FLOAT16  NPU    (64,4,1,1)                     \
          \\                      0/0/0                    0            OutputOperator:factors
{RULE}
D RKNN: [01:06:01.606] <<<<<<<< end: rknn::RKNNModelRegCmdbuildPass
D RKNN: [01:06:01.606]                         Feature Tensor Information Table
{RULE}
D RKNN: [01:06:01.606] 1   ConvRelu       window    INT8      NC1HWC2      (1,23,1,16)  \
(1,3,1,16,8) | 0x00000000 0x00000180 0x00000180
I rknn building done.
"""


def test_a_recorded_log_gives_each_operator_but_the_borders_of_the_graph() -> None:
    assert parse_placement(RECORDED) == (
        Op('Transpose', 'FLOAT16', 'CPU', 0, 'Transpose:window_tp'),
        Op('ConvRelu', 'FLOAT16', 'NPU', 10320, 'Conv:window_tp_conv'),
        Op('Conv', 'FLOAT16', 'NPU', 1408, 'Conv:/layers/Relu_output_0'),
    )


def test_the_last_of_several_tables_counts() -> None:
    log = layer_log([('Softmax', 'CPU')]) + RECORDED + layer_log([('Conv', 'NPU'), ('Sin', 'CPU')])
    assert [(op.kind, op.unit) for op in parse_placement(log)] == [('Conv', 'NPU'), ('Sin', 'CPU')]


@pytest.mark.parametrize(
    'log',
    [
        '',
        'I rknn building done.\n',
        RECORDED.replace('Network Layer', 'Another'),
        RECORDED.split('D RKNN: [01:06:01.606] 0 ')[0],
        RECORDED.replace(' CPU ', ' DSP '),
    ],
)
def test_a_log_without_a_readable_table_is_an_error_and_never_an_empty_placement(log: str) -> None:
    with pytest.raises(EngineError, match='where the operators run is not known'):
        parse_placement(log)


def test_a_table_that_cannot_be_read_to_its_end_is_an_error() -> None:
    cut = RECORDED.replace(
        '2    ConvRelu           FLOAT16  NPU', '2    ConvRelu           FLOAT16'
    )
    with pytest.raises(EngineError, match='where the operators run is not known'):
        parse_placement(cut)
