# SPDX-License-Identifier: Apache-2.0
#
# From hls/ to an IP catalogue entry, for Vitis HLS 2022.1 to 2024.2. Run by overlay/build.py, as
#   vitis-run --mode hls --tcl run_hls.tcl     (2023.1 and later)
#   vitis_hls -f run_hls.tcl                   (before)
# Parameters come by the environment, because vitis-run hands no arguments to a script:
#   BBS_HLS        folder of engine.cpp
#   BBS_GENERATED  folder of the build's build.hpp
#   BBS_PART       part number
#   BBS_CLOCK_NS   clock period in nanoseconds
# The project is made in the working folder.
# Not yet run under the Xilinx tools.

proc parameter {name} {
    if {![info exists ::env($name)] || $::env($name) eq ""} {
        puts stderr "run_hls.tcl: the environment variable $name is not set; overlay/build.py sets it"
        exit 2
    }
    return $::env($name)
}

set hls       [parameter BBS_HLS]
set generated [parameter BBS_GENERATED]
set part      [parameter BBS_PART]
set period    [parameter BBS_CLOCK_NS]

open_project -reset bbs_engine
set_top bbs_engine
add_files "$hls/engine.cpp" -cflags "-std=c++14 -I$hls -I$generated"

open_solution -reset -flow_target vivado solution
set_part $part
create_clock -period $period -name default

# The default of addr64 differs by release, and with it every register offset behind a pointer.
# Wider accesses than the pointer's own type would promise an alignment that nobody keeps.
config_interface -m_axi_addr64=true -m_axi_max_widen_bitwidth 0
# Without it a static variable keeps its value through a reset.
config_rtl -reset state
# A pipeline that waits for a word goes on emptying: what is in it may be what the word comes of, by
# way of the chain.
config_compile -pipeline_style flp
config_dataflow -strict_mode error

csynth_design

# PYNQ binds the driver by vendor:library:name:version, pynq-bbs:bbs:bbs_engine:1.0.
config_export -format ip_catalog -rtl verilog -vendor pynq-bbs -library bbs -ipname bbs_engine \
    -version 1.0 -display_name "Bank-balanced sparse engine"
export_design -format ip_catalog
exit 0
