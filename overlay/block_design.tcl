# SPDX-License-Identifier: Apache-2.0
#
# From the engine's IP to a bitstream, for every board, in Vivado 2022.1 and later. Run by
# overlay/build.py, in a folder of its own, as
#   vivado -mode batch -source block_design.tcl
# What differs between boards comes from overlay/boards.json by the environment:
#   BBS_NAME               name of the design and of the .bit and .hwh
#   BBS_PART, BBS_BOARD_PART
#   BBS_PROCESSING_SYSTEM  processing_system7 or zynq_ultra_ps_e
#   BBS_PORT_BITS          width of the HP ports
#   BBS_CONTROL_BASE       address of the engine's registers
#   BBS_CLOCK_MHZ          clock to ask for
#   BBS_IP                 folder of the engine's IP
#   BBS_OUT                folder for the .bit, the .hwh and the reports
#   BBS_JOBS               runs at once
# Not yet run under Vivado.

proc fail {message} {
    puts stderr "block_design.tcl: $message"
    exit 1
}

proc parameter {name} {
    if {![info exists ::env($name)] || $::env($name) eq ""} {
        fail "the environment variable $name is not set; overlay/build.py sets it"
    }
    return $::env($name)
}

# The newest version of an IP in this Vivado: a version written down would tie us to one release.
proc newest {vlnv} {
    set found [lsort -dictionary [get_ipdefs -quiet $vlnv]]
    if {[llength $found] == 0} { fail "this Vivado has no IP $vlnv" }
    return [lindex $found end]
}

proc cell {vlnv name} { return [create_bd_cell -type ip -vlnv [newest $vlnv] $name] }

proc join_pins {from args} {
    foreach to $args { connect_bd_net [get_bd_pins $from] [get_bd_pins $to] }
}

proc join_buses {from to} {
    connect_bd_intf_net [get_bd_intf_pins $from] [get_bd_intf_pins $to]
}

set name        [parameter BBS_NAME]
set board_part  [parameter BBS_BOARD_PART]
set system      [parameter BBS_PROCESSING_SYSTEM]
set port_bits   [parameter BBS_PORT_BITS]
set clock_mhz   [parameter BBS_CLOCK_MHZ]
set out         [parameter BBS_OUT]

# HP port of each of the engine's ports. Weights are most of the traffic and get one alone; the
# two read least share one. Results only write, so residuals share theirs and lose nothing: an AXI
# port reads and writes at the same time.
set port_of {program 0 indices 0 weights 1 activations 2 results 3 residuals 3}

# What the two families call the same things; %d is the number of an HP port.
if {$system eq "processing_system7"} {
    set preset {make_external "FIXED_IO, DDR" apply_board_preset "1" Master "Disable" Slave "Disable"}
    set clock FCLK_CLK0
    set reset FCLK_RESET0_N
    set control M_AXI_GP0
    set control_clock M_AXI_GP0_ACLK
    # Widths are equal here: AXI4 to AXI3 is all there is to do, at half the LUTs of SmartConnect.
    set bus axi_interconnect
    set port "S_AXI_HP%d"
    set port_clock "S_AXI_HP%d_ACLK"
    set settings [list CONFIG.PCW_FPGA0_PERIPHERAL_FREQMHZ $clock_mhz CONFIG.PCW_USE_M_AXI_GP0 1]
    foreach n {0 1 2 3} {
        lappend settings CONFIG.PCW_USE_S_AXI_HP$n 1 CONFIG.PCW_S_AXI_HP${n}_DATA_WIDTH $port_bits
    }
} elseif {$system eq "zynq_ultra_ps_e"} {
    set preset {apply_board_preset "1"}
    set clock pl_clk0
    set reset pl_resetn0
    set control M_AXI_HPM0_FPD
    set control_clock maxihpm0_fpd_aclk
    set bus smartconnect
    set port "S_AXI_HP%d_FPD"
    set port_clock "saxihp%d_fpd_aclk"
    # Presets open other master ports, and an open port wants a clock. HP0 is GP2 in settings.
    set settings [list CONFIG.PSU__FPGA_PL0_ENABLE 1 \
        CONFIG.PSU__CRL_APB__PL0_REF_CTRL__FREQMHZ $clock_mhz \
        CONFIG.PSU__USE__M_AXI_GP0 1 CONFIG.PSU__MAXIGP0__DATA_WIDTH 32 \
        CONFIG.PSU__USE__M_AXI_GP1 0 CONFIG.PSU__USE__M_AXI_GP2 0]
    foreach n {2 3 4 5} {
        lappend settings CONFIG.PSU__USE__S_AXI_GP$n 1 CONFIG.PSU__SAXIGP${n}__DATA_WIDTH $port_bits
    }
} else {
    fail "BBS_PROCESSING_SYSTEM is '$system', wanted processing_system7 or zynq_ultra_ps_e"
}

if {[llength [get_board_parts -quiet $board_part]] == 0} {
    fail "Vivado has no board files for $board_part; install them (Tools > Vivado Store > Boards)"
}
create_project -force $name project -part [parameter BBS_PART]
set_property board_part $board_part [current_project]
set_property ip_repo_paths [list [parameter BBS_IP]] [current_project]
update_ip_catalog
create_bd_design $name

# The processing system stays at the top level: PYNQ does not find it inside a hierarchy.
set ps ${system}_0
cell xilinx.com:ip:$system:* $ps
apply_bd_automation -rule xilinx.com:bd_rule:$system -config $preset [get_bd_cells $ps]
set_property -dict $settings [get_bd_cells $ps]

cell xilinx.com:ip:proc_sys_reset:* reset_0
join_pins $ps/$clock reset_0/slowest_sync_clk $ps/$control_clock
join_pins $ps/$reset reset_0/ext_reset_in

set engine bbs_engine_0
cell pynq-bbs:bbs:bbs_engine:* $engine
join_pins $ps/$clock $engine/ap_clk
join_pins reset_0/peripheral_aresetn $engine/ap_rst_n

# An interconnect for each bus of the processing system: it bridges widths and, to a 7-series,
# AXI4 to AXI3. SmartConnect has one clock, the AXI interconnect one for each side.
proc interconnect {bus name inputs clock} {
    cell xilinx.com:ip:$bus:* $name
    set_property -dict [list CONFIG.NUM_SI $inputs CONFIG.NUM_MI 1] [get_bd_cells $name]
    if {$bus eq "smartconnect"} {
        join_pins $clock $name/aclk
        join_pins reset_0/interconnect_aresetn $name/aresetn
        return
    }
    join_pins $clock $name/ACLK $name/M00_ACLK
    join_pins reset_0/interconnect_aresetn $name/ARESETN
    join_pins reset_0/peripheral_aresetn $name/M00_ARESETN
    for {set i 0} {$i < $inputs} {incr i} {
        join_pins $clock $name/S0${i}_ACLK
        join_pins reset_0/peripheral_aresetn $name/S0${i}_ARESETN
    }
}
interconnect $bus control_bus 1 $ps/$clock
join_buses $ps/$control control_bus/S00_AXI
join_buses control_bus/M00_AXI $engine/s_axi_control
foreach n {0 1 2 3} {
    set masters {}
    foreach {master target} $port_of { if {$target == $n} { lappend masters $master } }
    interconnect $bus memory_bus_$n [llength $masters] $ps/$clock
    for {set i 0} {$i < [llength $masters]} {incr i} {
        join_buses $engine/m_axi_[lindex $masters $i] memory_bus_$n/S0${i}_AXI
    }
    join_buses memory_bus_$n/M00_AXI $ps/[format $port $n]
    join_pins $ps/$clock $ps/[format $port_clock $n]
}

assign_bd_address -offset [parameter BBS_CONTROL_BASE] -range 64K -force \
    -target_address_space [get_bd_addr_spaces $ps/Data] \
    [get_bd_addr_segs $engine/s_axi_control/Reg]
# The memory behind the HP ports, at the addresses that the processing system gives it.
assign_bd_address
validate_bd_design
save_bd_design

add_files -norecurse [make_wrapper -files [get_files $name.bd] -top]
set_property top ${name}_wrapper [current_fileset]
update_compile_order -fileset sources_1
launch_runs impl_1 -jobs [parameter BBS_JOBS]
wait_on_run impl_1
if {[get_property PROGRESS [get_runs impl_1]] ne "100%"} {
    fail "synthesis or implementation failed: see project/$name.runs/*/runme.log"
}
open_run impl_1
report_utilization -file $out/utilisation.rpt
report_timing_summary -file $out/timing.rpt

set setup [get_property SLACK [get_timing_paths -delay_type max]]
set hold [get_property SLACK [get_timing_paths -delay_type min]]
foreach {kind slack} [list setup $setup hold $hold] {
    if {![string is double -strict $slack] || $slack < 0} {
        fail "$kind slack is '$slack' ns: no bitstream. See $out/timing.rpt; a lower --clock may do"
    }
}
write_bitstream -force $out/$name.bit
file copy -force project/$name.gen/sources_1/bd/$name/hw_handoff/$name.hwh $out/$name.hwh

set result [open $out/result.txt w]
puts $result "vivado [version -short]"
puts $result "setup_slack_ns $setup"
puts $result "hold_slack_ns $hold"
# What the PLL really makes, not what was asked for.
puts $result "clock_hz [get_property CONFIG.FREQ_HZ [get_bd_pins $ps/$clock]]"
close $result
exit 0
