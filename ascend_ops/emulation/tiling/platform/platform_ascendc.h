// What op_host/ uses of CANN's header of this name: a chip as the tiling sees it.
#pragma once
#include <cstdint>
#include <string>

namespace fe {
struct PlatFormInfos {
  std::string soc;  // Ascend910, Ascend910B, Ascend910_93
  uint32_t cores;   // those that a vector kernel runs on
};
}  // namespace fe

namespace platform_ascendc {
enum class CoreMemType { UB };
enum class SocVersion { ASCEND910, ASCEND910B };

// The AI cores of 910A are whole. Those of 910B and 910_93 are split into a cube core and two vector cores; both chips are
// ASCEND910B here, and keep 256 B of the unified buffer for themselves.
class PlatformAscendC {
 public:
  explicit PlatformAscendC(fe::PlatFormInfos *infos) : infos(infos) {}
  SocVersion GetSocVersion() const { return infos->soc == "Ascend910" ? SocVersion::ASCEND910 : SocVersion::ASCEND910B; }
  uint32_t GetCoreNumAiv() const { return infos->cores; }
  uint32_t GetCoreNumAic() const { return IsSplit() ? (infos->cores + 1) / 2 : infos->cores; }
  uint32_t GetCoreNum() const { return GetCoreNumAic(); }
  void GetCoreMemSize(const CoreMemType &, uint64_t &bytes) const { bytes = IsSplit() ? 196608 - 256 : 262144; }

 private:
  bool IsSplit() const { return GetSocVersion() == SocVersion::ASCEND910B; }
  fe::PlatFormInfos *infos;
};
}  // namespace platform_ascendc
